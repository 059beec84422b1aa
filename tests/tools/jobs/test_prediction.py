"""Predicting images as people name them: files, folders, globs and URLs, and what must not be overwritten."""

from __future__ import annotations

import json
import os
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from heads.files import save_detector
from resnet_backbone.errors import InvalidValue, MissingFile
from tests.tools.conftest import Said
from tools import predict as command
from tools.config.detection import RunConfig
from tools.jobs import detection, prediction
from tools.jobs.prediction_inputs import find_sources, output_names

AWKWARD = (
    "two words.jpg",
    "a [1].jpg",
    "[bold]x.png",
    "图像.jpg",
    "صورة.png",
    ":smile:.jpg",
    "1.2.3.jpg",
    "*.jpg",
)

if sys.platform == "linux":
    AWKWARD += (os.fsdecode(b"\xe9t\xe9.jpg"),)  # no UTF-8


@pytest.fixture(scope="module")
def weights(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box detector with random weights, which finds something everywhere."""
    folder = tmp_path_factory.mktemp("weights")
    keep = {f"keep_{when}_nms_{mode}": 20 for when in ("before", "after") for mode in ("train", "test")}
    config = RunConfig.model_validate(
        {
            "out": str(folder),
            "model": {
                "recipe": "faster_rcnn_r18_fpn",
                "norm": "bn",
                "frozen_stages": 0,
                "pyramid_channels": 8,
                "rpn": {"anchor_sizes_px": [[12], [24], [36], [48], [64]], **keep},
                "box": {"hidden": 8, "min_score": 0.0, "max_detections": 5},
            },
            "backbone_weights": None,
            "schedule": {"iters": 1},
            "data": {
                "train": {
                    "images": str(tiny_shapes / "images" / "val"),
                    "annotations": str(tiny_shapes / "annotations" / "instances_val.json"),
                }
            },
            "input": {"short_side_px": [64], "long_side_px": 96, "test_short_side_px": 64},
        }
    )
    detector = detection.make_detector(config, detection.load_train(config), Console(quiet=True))
    save_detector(detector, config.model, folder / "tiny.safetensors", source="trained here")
    return folder / "tiny.safetensors"


@pytest.fixture
def run(weights: Path, call: Callable[..., Said]) -> Callable[..., Said]:
    """run(image, ..., "--out", out) calls tools/predict.py on the CPU."""
    return lambda *arguments: call(command, weights, *arguments, "--device", "cpu", "--min-score", "0")


def picture(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((48, 64, 3), value, np.uint8)).save(path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def written(out: Path) -> set[str]:
    """Names of the predictions, without the suffix; each has a picture and a JSON file of its image."""
    names = {str(p.relative_to(out))[:-5] for p in out.rglob("*.json")}
    assert set(files(out)) == {name + suffix for name in names for suffix in (".png", ".json")}
    return names


def test_files_folders_and_globs_are_found_and_said(run: Callable[..., Said], tmp_path: Path) -> None:
    for name in ("photos/1.jpg", "photos/deep/er/1.jpg", "photos/deep/2.PNG", "more/x/3.jpg", "more/y/3.jpg", "4.bmp"):
        picture(tmp_path / name)
    (tmp_path / "photos" / "1.json").write_text("{}")
    said = run(tmp_path / "photos", tmp_path / "more" / "*" / "*.jpg", tmp_path / "4.bmp", "--out", tmp_path / "out")
    assert said.code == 0, said
    assert written(tmp_path / "out") == {"1", "deep/er/1", "deep/2", "x/3", "y/3", "4"}
    assert f"{tmp_path}/photos: 3 images (left out: 1 other files)" in said.out
    assert f"{tmp_path}/more/*/*.jpg: 2 images" in said.out
    content = json.loads((tmp_path / "out" / "deep" / "er" / "1.json").read_text())
    assert content["image"] == str(tmp_path / "photos/deep/er/1.jpg") and (content["height"], content["width"]) == (
        48,
        64,
    )
    assert content["detections"]


def test_files_of_any_name_are_predicted_under_their_name(run: Callable[..., Said], tmp_path: Path) -> None:
    """Brackets and stars are taken literally where such a file exists; also in the folder of a glob."""
    paths = [picture(tmp_path / "in [2024]" / name) for name in AWKWARD]
    said = run(*paths, "--out", tmp_path / "out")
    assert said.code == 0, said
    assert written(tmp_path / "out") == {Path(name).stem for name in AWKWARD}
    for path in paths:
        assert f"{path}: " in said.out and f"-> {tmp_path}/out/{path.stem}.png" in said.out
    globbed = run(tmp_path / "in [2024]" / "[a-z]*.jpg", "--out", tmp_path / "out2")
    assert globbed.code == 0 and written(tmp_path / "out2") == {"a [1]", "two words"}


def test_images_of_one_stem_do_not_overwrite_each_other(run: Callable[..., Said], tmp_path: Path) -> None:
    paths = [
        picture(tmp_path / name, value)
        for value, name in enumerate(("a/1.jpg", "b/1.jpg", "b/1.png", "b/A.jpg", "c/a.jpg"))
    ]
    assert run(*paths, paths[0], "--out", tmp_path / "out").code == 0
    assert written(tmp_path / "out") == {"a/1", "b/1", "1.png", "b/A", "c/a"}
    images = {json.loads(p.read_text())["image"] for p in (tmp_path / "out").rglob("*.json")}
    assert images == {str(path) for path in paths}


PARTS = st.sampled_from(["1", "a", "A", "1.jpg", "1.png", "x.y", "é", "e\u0301"])
SUFFIXES = st.sampled_from([".jpg", ".png", ".JPG", ""])
PATHS = st.lists(
    st.tuples(st.lists(PARTS, max_size=2), PARTS, SUFFIXES).map(lambda p: "/".join([*p[0], p[1] + p[2]])),
    min_size=1,
    max_size=12,
)
URLS = st.lists(PARTS.map(lambda part: f"http://host/{part}/1.jpg?id={part}"), max_size=4)


@given(PATHS, URLS)
def test_no_two_images_share_a_file(paths: list[str], urls: list[str]) -> None:
    """Also on a disk that ignores case and Unicode forms, and none is the folder of another."""
    sources = find_sources([*(f"/nowhere/{path}" for path in paths), *urls]).images
    names = [unicodedata.normalize("NFC", name).casefold() for name in output_names(sources)]
    assert len({s.path for s in sources}) == len(names) == len(set(names))
    outputs = {Path("out", name + suffix) for name in names for suffix in (".png", ".json")}
    assert not outputs & {parent for path in outputs for parent in path.parents}
    assert all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in names)


def test_an_out_that_holds_the_images_loses_none_of_them_nor_their_labels(
    run: Callable[..., Said], tmp_path: Path
) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.jpg")
    (tmp_path / "2.json").write_text('{"shapes": [], "imagePath": "2.jpg"}')
    before = files(tmp_path)
    for name in ("1.png", "2.jpg"):
        for more in ([], ["--overwrite"]):
            said = run(tmp_path / name, "--out", tmp_path, *more)
            assert said.code == 2 and "no predictions of this command" in said.err and files(tmp_path) == before
    said = run(tmp_path, "--out", tmp_path)
    assert said.code == 2 and files(tmp_path) == before
    fix = said.err.rsplit("such as ", 1)[1].strip()
    assert fix == str(tmp_path / "predictions") and run(tmp_path, "--out", fix).code == 0
    again = run(tmp_path, "--out", fix, "--overwrite")
    assert again.code == 0 and "2 pictures of earlier predictions" in again.out
    assert written(Path(fix)) == {"1", "2"} and before.items() <= files(tmp_path).items()


def test_earlier_predictions_are_replaced_with_overwrite_only(run: Callable[..., Said], tmp_path: Path) -> None:
    one, two = (picture(tmp_path / name) for name in ("1.jpg", "2.jpg"))
    assert run(two, "--out", tmp_path / "out").code == 0
    before = files(tmp_path / "out")
    said = run(one, two, "--out", tmp_path / "out")
    assert said.code == 2 and "2.png" in said.err and "--overwrite" in said.err
    assert files(tmp_path / "out") == before  # checked before the first image
    picture(two, 200)
    assert run(one, two, "--out", tmp_path / "out", "--overwrite").code == 0
    assert written(tmp_path / "out") == {"1", "2"} and files(tmp_path / "out")["2.png"] != before["2.png"]


def test_bad_images_among_good_ones_are_listed_at_the_end(run: Callable[..., Said], tmp_path: Path) -> None:
    good = [picture(tmp_path / f"{i}.jpg") for i in (1, 3)]
    half = tmp_path / "2.jpg"
    half.write_bytes(good[0].read_bytes()[:100])
    text = tmp_path / "[red]4.jpg"
    text.write_text("no image")
    said = run(tmp_path / "gone.jpg", text, good[0], half, good[1], "--out", tmp_path / "out")
    assert said.code == 1 and written(tmp_path / "out") == {"1", "3"}
    assert "3 of 5 images could not be predicted" in said.err and "Traceback" not in said.err
    assert all(str(path) in said.err for path in (tmp_path / "gone.jpg", half, text))


def test_the_limit_on_the_size_of_an_image_can_be_lowered_and_raised(
    run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the command changes it
    images = [picture(tmp_path / "a.png"), tmp_path / "b.png"]
    Image.new("RGB", (80, 60)).save(images[1])
    said = run(*images, "--out", tmp_path / "out", "--max-image-mpx", "0.004")
    assert said.code == 1 and "b.png is too large" in said.err and "--max-image-mpx" in said.err
    assert written(tmp_path / "out") == {"a"}
    assert run(*images, "--out", tmp_path / "out2", "--max-image-mpx", "0.005").code == 0
    assert run(*images, "--out", tmp_path / "out3", "--max-image-mpx", "0").code == 2


def test_whatever_a_codec_raises_is_the_fault_of_that_image(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [picture(tmp_path / f"{i}.jpg") for i in range(2)]
    read = prediction.read_image

    def fails(path: str) -> np.ndarray:
        if path == str(paths[0]):
            raise RuntimeError("codec state 7")
        return read(path)

    monkeypatch.setattr(prediction, "read_image", fails)
    with pytest.raises(detection.UnreadableImages, match="0.jpg .*codec state 7") as error:
        detection.predict(weights, paths, out=tmp_path / "out", device="cpu")
    assert [p.image for p in error.value.predictions] == [paths[1]]
    assert [path for path, _ in error.value.failures] == [str(paths[0])]


@pytest.mark.parametrize("score", ["nan", "-0.1", "1.5", "inf", "50"])
def test_a_score_outside_0_to_1_is_refused(
    score: str, weights: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    said = call(command, weights, picture(tmp_path / "1.jpg"), "--out", tmp_path / "out", f"--min-score={score}")
    assert said.code == 2 and "min_score" in said.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["empty", "empty/*.jpg", "empty/*", "none/**/*.png", "[x].jpg"])
def test_a_folder_or_a_glob_without_images_is_named(name: str, run: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    said = run(picture(tmp_path / "1.jpg"), tmp_path / name, "--out", tmp_path / "out")
    assert said.code == 2 and str(tmp_path / name) in said.err and not (tmp_path / "out").exists()


def test_links_that_lead_back_end_the_search(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert [Path(source.path) for source in find_sources([tmp_path]).images] == [tmp_path / "a" / "1.jpg"]


@pytest.mark.parametrize(
    "entry", ["ftp://host/1.jpg", "s3://bucket/1.jpg", "file:///tmp/1.jpg", "http://", "http://[x/1.jpg", ""]
)
def test_other_urls_are_refused(entry: str) -> None:
    with pytest.raises(InvalidValue):
        find_sources([entry])


def test_nothing_to_predict_is_an_error_and_one_name_is_not_taken_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="no images"):
        find_sources([])
    assert [source.path for source in find_sources("1.jpg").images] == ["1.jpg"]
    with pytest.raises(MissingFile):
        find_sources(str(tmp_path))


def test_a_file_in_place_of_the_out_folder_is_kept(run: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    said = run(picture(tmp_path / "1.jpg"), "--out", tmp_path / "out", "--overwrite")
    assert said.code == 2 and "is a file" in said.err and (tmp_path / "out").read_text() == "mine"


class Server(SimpleHTTPRequestHandler):
    """Serves a folder; of cut.jpg the end is missing, huge.jpg and endless.jpg are large, one without saying so."""

    lengths: ClassVar = {"/cut.jpg": 500_000, "/huge.jpg": 10**10, "/endless.jpg": None}

    def do_GET(self) -> None:
        if self.path not in self.lengths:
            super().do_GET()
            return
        self.send_response(200)
        if (length := self.lengths[self.path]) is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        with suppress(ConnectionError):
            for _ in range(40 if length is None else 1):
                self.wfile.write(bytes(100_000))

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address of a server of it."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_urls_are_downloaded_and_predicted_like_the_files(
    served: tuple[Path, str], run: Callable[..., Said], tmp_path: Path
) -> None:
    folder, address = served
    picture(folder / "a" / "图 1.png", 40)
    picture(folder / "b" / "x.jpg")
    urls = [f"{address}/a/{quote('图 1.png')}", f"{address}/b/x.jpg?width=2", f"{address}/a/图 1.png"]
    assert run(*urls[:2], "--out", tmp_path / "out").code == 0
    assert written(tmp_path / "out") == {"图 1", "x"}
    assert run(folder / "a" / "图 1.png", "--out", tmp_path / "local").code == 0
    one, two = (json.loads((tmp_path / name / "图 1.json").read_text()) for name in ("out", "local"))
    assert one.pop("image") == urls[0] and two.pop("image") and one == two
    assert run(urls[2], "--out", tmp_path / "unquoted").code == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone.jpg", "HTTP 404"),
        ("page.html", "cannot be read as an image"),
        ("endless.jpg", "larger than 1 MB"),
        ("huge.jpg", "larger than 1 MB"),
        ("cut.jpg", "100,000 of 500,000 bytes"),
    ],
)
def test_a_url_that_gives_no_image_is_named_and_the_rest_goes_on(
    name: str,
    said: str,
    served: tuple[Path, str],
    run: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, address = served
    (folder / "page.html").write_text("<html>log in</html>")
    monkeypatch.setattr(prediction, "MAX_DOWNLOAD_BYTES", 1_000_000)
    printed = run(f"{address}/{name}", picture(tmp_path / "1.jpg"), "--out", tmp_path / "out")
    assert printed.code == 1 and f"{address}/{name}" in printed.err and said in printed.err, printed
    assert written(tmp_path / "out") == {"1"} and "/predict_" not in printed.err


def test_a_server_that_does_not_answer_is_an_error_in_time(
    run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            silence.wait(5)

        def log_message(self, *_: object) -> None: ...

    silence = threading.Event()
    monkeypatch.setattr(prediction, "TIMEOUT_S", 0.3)
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    said = run(f"http://127.0.0.1:{server.server_port}/1.jpg", "--out", tmp_path / "out")
    silence.set()
    server.shutdown()
    server.server_close()
    assert said.code == 2 and "timed out" in said.err
    refused = run(f"http://127.0.0.1:{server.server_port}/1.jpg", "--out", tmp_path / "out")
    assert refused.code == 2 and "refused" in refused.err
