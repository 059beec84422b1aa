"""Predicting: detections of single images as pictures and JSON files."""

from __future__ import annotations

import json
import os
import tempfile
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from os import PathLike
from pathlib import Path
from string import punctuation
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np
from PIL import Image
from rich.progress import track

from heads.detector import RCNN
from heads.images import UnreadableImage, read_image
from heads.predictor import Predictor, Prepared
from resnet_backbone.errors import AlreadyExists, InvalidValue
from tools.console import CONSOLE
from tools.data.guard import read_record
from tools.devices import pick_device, pick_precision, use_tf32
from tools.failures import during, explained
from tools.files import write_text

from .detection_pictures import detections_to_json, draw_detections
from .detection_setup import fast_predictor, open_detector
from .prediction_inputs import Source, find_sources, is_prediction, output_names

PICTURE_SIDE_PX = 480
READ_AHEAD = 2  # images that are read while another is predicted
TIMEOUT_S = 30.0
MAX_DOWNLOAD_BYTES = 200_000_000
LISTED = 20  # files that one message names


@dataclass(frozen=True)
class Prediction:
    """What `predict` wrote for one image.

    Attributes:
        image: the image file, or its URL.
        picture: the image with its detections.
        json: the detections, also those that were not drawn.
        drawn: number of detections in the picture.
    """

    image: Path | str
    picture: Path
    json: Path
    drawn: int


class UnreadableImages(UnreadableImage):
    """Images that could not be predicted; the others were.

    Attributes:
        predictions: what was written for the others.
        failures: images that could not be read, and why.
    """

    def __init__(self, predictions: Sequence[Prediction], failures: Sequence[tuple[str, UnreadableImage]]) -> None:
        """Args: as the attributes."""
        total = len(predictions) + len(failures)
        lines = [f"{len(failures)} of {total} images could not be predicted:", *(f"  {why}" for _, why in failures)]
        super().__init__(str(failures[0][1]) if total == 1 else "\n".join(lines))
        self.predictions = list(predictions)
        self.failures = list(failures)


@explained()
def predict(
    run_or_weights: str | PathLike[str],
    images: Iterable[str | PathLike[str]],
    *,
    out: str | PathLike[str],
    min_score: float = 0.5,
    device: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
    overwrite: bool = False,
    report: Callable[[Prediction], None] = lambda prediction: None,
) -> list[Prediction]:
    """Detect objects in images; write a picture and a JSON file for each.

    The files have the name of the image. Sub-folders of a folder or a glob are kept. Where two names would be equal,
    they keep the suffix (1.jpg.png), and if they are equal still, the folders in which they differ.

    Args:
        run_or_weights: the folder of a run, or a file, as for `load_detector`.
        images: files, folders (all images in them, at any depth), globs, and http or https URLs.
        out: folder for the pictures and JSON files; it is made.
        min_score: detections with a lower score are not drawn, 0..1.
        device: "auto" (CUDA if available), "cpu" or "cuda".
        precision: "auto", "fp32", "bf16" or "fp16".
        compile: compile the detector with torch.compile; it takes about a minute.
        overwrite: replace earlier predictions in `out`. Other files are never replaced.
        report: called after each image.

    Returns:
        What was written, by image.

    Raises:
        InvalidValue: `min_score` is not in 0..1.
        AlreadyExists: a file to write exists. Nothing was predicted.
        UnreadableImages: images are missing, damaged or no images; the others were predicted and written.
        SystemFailure: a file cannot be written, or a folder cannot be read.
        UserError: as for `find_sources`, `load_detector`, `pick_device` and `pick_precision`.
    """
    if not 0 <= min_score <= 1:
        raise InvalidValue(f"min_score={min_score} is no score: give a number in 0..1")
    sources = find_sources(images)
    for note in sources.notes:
        CONSOLE.print(note, markup=False, emoji=False, soft_wrap=True)
    names = output_names(sources.images)
    files = _Files(Path(out), names)
    files.check([source.path for source in sources.images if not source.is_url], overwrite=overwrite)
    device = pick_device(device)
    detector = open_detector(run_or_weights).to(device)
    use_tf32(False)
    predictor = fast_predictor(detector, pick_precision(precision, device), compile)
    files.make_folders()
    predictions: list[Prediction] = []
    failures: list[tuple[str, UnreadableImage]] = []
    prepare_one = predictor.preparation()

    def prepared(source: Source) -> tuple[np.ndarray, Prepared]:
        image = read_record(_read, source)
        return image, prepare_one(image)

    with ThreadPoolExecutor(READ_AHEAD) as pool:
        rows = zip(sources.images, files.pictures, _ahead(prepared, sources.images, pool))
        total = len(sources.images)
        for source, picture, read in track(rows, "predict", total, console=CONSOLE, disable=not CONSOLE.is_terminal):
            try:
                image, pixels = read()
            except UnreadableImage as error:
                failures.append((source.path, error))
                continue
            prediction = _predict_one(source, image, pixels, detector, predictor, picture, min_score)
            predictions.append(prediction)
            report(prediction)
    if failures:
        raise UnreadableImages(predictions, failures)
    return predictions


def _ahead(
    prepared: Callable[[Source], tuple[np.ndarray, Prepared]], sources: Sequence[Source], pool: ThreadPoolExecutor
) -> Iterator[Callable[[], tuple[np.ndarray, Prepared]]]:
    """Read images in threads while others are predicted.

    Args:
        prepared: reads and resizes an image.
        sources: the images.
        pool: the threads.

    Yields:
        For every image a function that returns it, or raises what reading it raised.
    """
    coming: deque[Callable[[], tuple[np.ndarray, Prepared]]] = deque()
    try:
        for source in sources:
            # a download is waited for in the main thread: a thread could not be stopped by Ctrl-C
            coming.append(partial(prepared, source) if source.is_url else pool.submit(prepared, source).result)
            if len(coming) > READ_AHEAD:
                yield coming.popleft()
        yield from coming
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _predict_one(
    source: Source,
    image: np.ndarray,
    pixels: Prepared,
    detector: RCNN,
    predictor: Predictor,
    picture: Path,
    min_score: float,
) -> Prediction:
    """Predict one image and write its files."""
    with during(f"detecting objects in {source.path} ({image.shape[1]}x{image.shape[0]})"):
        detections = predictor.detect([pixels])[0]
    drawing = draw_detections(image, detections, detector.class_names, min_score=min_score, min_side_px=PICTURE_SIDE_PX)
    content = detections_to_json(source.path, image, detections, detector.class_names)
    json_path = json_of(picture)
    # a picture without a JSON file beside it is not known as a prediction: the JSON file comes first
    write_text(json_path, json.dumps(content) + "\n")
    draft = picture.with_name(f"{picture.name}.part")
    try:
        Image.fromarray(drawing).save(draft, format="PNG")
        os.replace(draft, picture)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    drawn = int((detections.scores >= min_score).sum())
    return Prediction(source.path if source.is_url else Path(source.path), picture, json_path, drawn)


def json_of(picture: Path) -> Path:
    """The JSON file beside a picture."""
    return picture.with_name(f"{picture.name.removesuffix('.png')}.json")


class _Files:
    """The files that a call writes."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.pictures = [folder / f"{name}.png" for name in names]

    def check(self, inputs: Sequence[str], *, overwrite: bool) -> None:
        """Check that nothing is lost: no input, no file of others, and no earlier prediction without `overwrite`."""
        if self.folder.exists() and not self.folder.is_dir():
            raise AlreadyExists(f"{self.folder} is a file: give --out a folder")
        real = {os.path.realpath(path) for path in inputs}
        earlier, foreign = [], []
        for picture in self.pictures:
            json_path = json_of(picture)
            existing = [path for path in (picture, json_path) if os.path.lexists(path)]
            ours = is_prediction(json_path) and not picture.is_dir()
            if existing and ours and not any(os.path.realpath(path) in real for path in existing):
                earlier += existing
            else:
                foreign += existing
        if foreign:
            raise AlreadyExists(
                f"these files are no predictions of this command, and would be overwritten: {_listed(foreign)}: give "
                f"--out another folder, such as {self._free_folder()}"
            )
        if earlier and not overwrite:
            raise AlreadyExists(
                f"{len(earlier)} files of earlier predictions exist: {_listed(earlier)}: give --out another folder, or "
                "--overwrite to replace them"
            )

    def _free_folder(self) -> Path:
        """A folder in this one that does not exist."""
        number = 1
        while os.path.lexists(place := self.folder / f"predictions{'' if number == 1 else number}"):
            number += 1
        return place

    def make_folders(self) -> None:
        """Make all folders."""
        for folder in dict.fromkeys(picture.parent for picture in self.pictures):
            folder.mkdir(parents=True, exist_ok=True)


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - LISTED} more" if len(paths) > LISTED else ""
    return f"{', '.join(map(str, paths[:LISTED]))}{more}"


def _read(source: Source) -> np.ndarray:
    """Read an image, (H, W, 3) uint8 RGB; download it first if it is a URL."""
    if not source.is_url:
        return read_image(source.path)
    with _downloaded(source.path) as path:
        try:
            return read_image(path)
        except UnreadableImage as error:
            raise UnreadableImage(str(error).replace(str(path), source.path)) from error


@contextmanager
def _downloaded(url: str) -> Iterator[Path]:
    """A file with what a URL leads to, for as long as the context is open."""
    with tempfile.TemporaryDirectory(prefix="predict_") as folder:
        path = Path(folder) / "image"
        try:
            with (
                urllib.request.urlopen(_request(url), timeout=TIMEOUT_S) as answer,
                open(path, "wb") as file,
            ):
                length = answer.headers.get("Content-Length") or ""
                expected = int(length) if length.isdigit() else None
                size = 0
                _check_size(url, expected or 0)
                while part := answer.read(1 << 20):
                    size += len(part)
                    _check_size(url, size)
                    file.write(part)
        except UnreadableImage:
            raise
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.filename == str(path):
                raise  # the disk is at fault, not the server
            reason = getattr(error, "reason", None) or error
            code = f"HTTP {error.code}, " if isinstance(error, urllib.error.HTTPError) else ""
            raise UnreadableImage(
                f"{url} cannot be downloaded ({code}{reason}): correct the address, or download it and give the file"
            ) from error
        if expected is not None and expected != size:
            raise UnreadableImage(
                f"{url}: the connection ended after {size:,} of {expected:,} bytes: start again, or download it and "
                "give the file"
            )
        yield path


def _check_size(url: str, size: int) -> None:
    """Refuse a file that is larger than an image to predict can be. `size`: bytes."""
    if size > MAX_DOWNLOAD_BYTES:
        raise UnreadableImage(
            f"{url} is larger than {MAX_DOWNLOAD_BYTES // 1_000_000} MB: download it, and give the file"
        )


def _request(url: str) -> urllib.request.Request:
    """A request for a URL that may hold blanks and letters of any script."""
    parts = urlsplit(url)
    host = parts.netloc.encode("idna").decode("ascii")
    path, query = (quote(part, safe=punctuation) for part in (parts.path, parts.query))
    address = urlunsplit((parts.scheme, host, path, query, ""))
    return urllib.request.Request(address, headers={"User-Agent": "resnet-backbone"})
