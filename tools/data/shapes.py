"""The "shapes" data set: a small generated data set in COCO's format, to train a detector without any download.

Layout: images/{train,val}/*.jpg, annotations/instances_{train,val}.json, manifest.json (settings and file sizes).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils  # type: ignore[import-untyped, unused-ignore]

from resnet_backbone.errors import AlreadyExists, InvalidValue

from .shape_outlines import CATEGORY_IDS, FORMS, polygon_area
from .shape_scenes import Instance, Scene

# raise it with every change that alters a byte of the output, here or in shape_outlines.py and shape_scenes.py
GENERATOR_VERSION = 1
SPLITS: tuple[str, ...] = ("train", "val")

MAX_SHAPES = 6
EMPTY_SHARE = CROWD_SHARE = 0.04
JPEG_OPTIONS = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    # no chroma subsampling: it would blur edges between colours of similar brightness
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)

Bytes: TypeAlias = npt.NDArray[np.uint8]
Record: TypeAlias = dict[str, object]


@dataclass(frozen=True)
class ShapesSettings:
    """Settings that determine every byte of a data set.

    Attributes:
        train_images: number of training images.
        val_images: number of validation images.
        side_px: short side of the images, pixels.
        seed: random seed.

    Raises:
        InvalidValue: a setting is no integer, or is too small.
    """

    train_images: int = 2000
    val_images: int = 200
    side_px: int = 144
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in {"train_images": 1, "val_images": 1, "side_px": 128, "seed": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < minimum:
                default = getattr(ShapesSettings, name)
                raise InvalidValue(
                    f"{name} is {value!r}, but must be an integer of at least {minimum}: the default is {default}"
                )


def make_sample(settings: ShapesSettings, split: str, index: int) -> tuple[Bytes, list[Instance]]:
    """Draw one image. It depends only on seed, side, split and index.

    Args:
        settings: settings of the data set.
        split: one of `SPLITS`.
        index: index of the image in the split, from 0.

    Returns:
        The image, (H, W, 3) uint8 RGB, and its instances, from back to front.
    """
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    short, long = settings.side_px, round(settings.side_px * 4 / 3)
    height, width = [(short, short), (short, long), (long, short)][rng.choice(3, p=[0.7, 0.15, 0.15])]
    scene = Scene(rng, height, width)
    for _ in range(rng.integers(0, 5)):
        scene.add_clutter()
    draw = rng.random()
    if EMPTY_SHARE <= draw < EMPTY_SHARE + CROWD_SHARE:
        scene.add_crowd()
    for _ in range(rng.integers(1, MAX_SHAPES + 1) if draw >= EMPTY_SHARE else 0):
        scene.add_shape()
    blurred = cv2.GaussianBlur(scene.canvas, (0, 0), rng.uniform(0.2, 0.7))
    noisy = blurred + rng.normal(0, rng.uniform(1, 7), blurred.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8), scene.instances


def holds_shapes(root: Path, settings: ShapesSettings) -> bool:
    """Check whether a folder holds the data set of these settings, with every file at its full length."""
    try:
        manifest = json.loads((root / "manifest.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return bool(manifest == _manifest(root, settings))


def generate_shapes(
    root: Path,
    *,
    train_images: int = 2000,
    val_images: int = 200,
    side_px: int = 144,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Generate the data set, unless the folder already holds it.

    The bytes depend only on the settings, not on the number of workers. The folder is complete or not there: files are
    written to a temporary folder next to it, which is renamed at the end.

    Args:
        root: folder to write; must be new or empty.
        train_images: number of training images, at least 1.
        val_images: number of validation images, at least 1.
        side_px: short side of the images, pixels, at least 128.
        seed: random seed, at least 0.
        workers: number of processes, at least 1.

    Raises:
        InvalidValue: a setting is too small.
        AlreadyExists: the folder holds something else, or an incomplete data set.
    """
    settings = ShapesSettings(train_images, val_images, side_px, seed)
    if workers < 1:
        raise InvalidValue(f"workers is {workers}, but at least 1 process is needed: pass workers=1")
    if holds_shapes(root, settings):
        return
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise AlreadyExists(
            f"{root} exists and is not the complete data set of {settings}, version {GENERATOR_VERSION}: "
            "choose a new or empty folder, or remove what is there"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private, and renaming would keep that
        _write_all(temporary, settings, workers)
        os.replace(temporary, root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _manifest(root: Path, settings: ShapesSettings) -> Record:
    """Settings, and sizes in bytes of the images and annotation files under `root`."""
    paths = [*root.glob("images/*/*.jpg"), *root.glob("annotations/*.json")]
    return {
        "generator": "shapes",
        "generator_version": GENERATOR_VERSION,
        "settings": asdict(settings),
        "files": {path.relative_to(root).as_posix(): path.stat().st_size for path in sorted(paths)},
    }


def _write_all(root: Path, settings: ShapesSettings, workers: int) -> None:
    for folder in ("annotations", *(f"images/{split}" for split in SPLITS)):
        (root / folder).mkdir(parents=True)
    write = partial(_write_sample, root, settings)
    # spawn: a fork would copy locks that other threads of this process (torch's) hold at that moment
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for split, count in zip(SPLITS, (settings.train_images, settings.val_images), strict=True):
            samples = list(pool.map(write, [split] * count, range(count), chunksize=16))
            _write_annotations(root, settings.seed, split, samples)
    (root / "manifest.json").write_text(json.dumps(_manifest(root, settings), indent=1))


def _write_sample(root: Path, settings: ShapesSettings, split: str, index: int) -> tuple[Record, list[Record]]:
    """Write one image; return its COCO record and those of its annotations, which have no ids yet."""
    pixels, instances = make_sample(settings, split, index)
    image_id = 2 * index + 1 + SPLITS.index(split)  # odd in train, even in val: ids are unique over both splits
    file_name = f"{image_id:012d}.jpg"
    is_encoded, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), JPEG_OPTIONS)
    assert is_encoded
    (root / "images" / split / file_name).write_bytes(encoded.tobytes())
    height, width = pixels.shape[:2]
    image: Record = {"id": image_id, "file_name": file_name, "height": height, "width": width}
    return image, [{"image_id": image_id, **_coco_annotation(instance)} for instance in instances]


def _write_annotations(root: Path, seed: int, split: str, samples: list[tuple[Record, list[Record]]]) -> None:
    annotations = [annotation for _, of_image in samples for annotation in of_image]
    first_id = 1 + SPLITS.index(split)  # odd and even, as image ids
    content = {
        "info": {"description": "shapes", "version": str(GENERATOR_VERSION), "seed": seed, "split": split},
        "licenses": [],
        "images": [image for image, _ in samples],
        "annotations": [{"id": 2 * number + first_id, **record} for number, record in enumerate(annotations)],
        "categories": [{"id": CATEGORY_IDS[form], "name": form, "supercategory": "shape"} for form in FORMS],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _coco_annotation(instance: Instance) -> Record:
    """COCO's record without ids: a polygon if the whole instance is visible, else an RLE of the visible pixels."""
    record: Record = {"category_id": CATEGORY_IDS[instance.form], "iscrowd": int(instance.is_crowd)}
    if instance.whole:
        polygon = instance.polygon
        assert polygon is not None
        record["bbox"] = np.round([*polygon.min(axis=0), *np.ptp(polygon, axis=0)], 2).tolist()
        record["area"] = round(polygon_area(polygon), 2)
        record["segmentation"] = [polygon.ravel().tolist()]
        return record
    rle = mask_utils.encode(np.asfortranarray(instance.visible, dtype=np.uint8))
    counts: object = rle["counts"].decode("ascii")
    if instance.is_crowd:  # crowds in COCO's files have uncompressed run lengths
        column_major = instance.visible.ravel(order="F")
        edges = np.flatnonzero(np.diff(column_major, prepend=False, append=not column_major[-1]))
        counts = np.diff(edges, prepend=0).tolist()
    record["bbox"] = mask_utils.toBbox(rle).tolist()
    record["area"] = int(mask_utils.area(rle))
    record["segmentation"] = {"size": list(instance.visible.shape), "counts": counts}
    return record
