"""Files are recognised by their first bytes, whatever they are called."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnet_backbone.file_kinds import EMPTY, HEAD_BYTES, HTML, JSON, TEXT, XML, file_kind
from tools.annotations.findings import BadAnnotations, Findings
from tools.annotations.json_file import read_coco_file


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp"])
def test_images_are_recognised(suffix: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4)).save(buffer, Image.registered_extensions().get(f".{suffix}"))
    kind = file_kind(buffer.getvalue()[:HEAD_BYTES])
    assert kind is not None and kind.is_image and kind.fix == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", EMPTY),
        (b"\xef\xbb\xbf\n <html>", HTML),
        (b"<?xml version='1.0'?>", XML),
        (json.dumps({"images": []}).encode(), JSON),
        (b" \t[1, 2]", JSON),
        (b"name,x1,y1\n", TEXT),
        (b"nur ein paar W\xc3\xb6rter", TEXT),
        (pickle.dumps([1, 2]), None),
        (b"\x00\x01\x02\x03", None),
        (b"\xff\xfe\xfd", None),
    ],
)
def test_text_is_told_from_bytes(content: bytes, expected: object) -> None:
    assert file_kind(content) == expected


@given(text=st.text(st.characters(min_codepoint=0xA1, max_codepoint=0x1F64F, categories=["L"]), min_size=HEAD_BYTES))
def test_text_is_recognised_although_the_head_cuts_a_character(text: str) -> None:
    assert file_kind(text.encode()[:HEAD_BYTES]) == TEXT


def test_archives_and_torch_files_have_different_fixes(tmp_path: Path) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.txt", "text")
    kind, gzipped = file_kind(zipped.getvalue()), file_kind(gzip.compress(b"text"))
    assert kind is not None and kind.what == "a zip archive" and "unzip" in kind.fix
    assert gzipped is not None and "gunzip" in gzipped.fix


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"  \n", "is an empty file .0 bytes., not COCO's JSON: give a COCO instances file"),
        (b"version https://git-lfs.github.com/spec/v1", "is a git-lfs pointer.*: run `git lfs pull`"),
        (b"<!DOCTYPE html>", "is an HTML page, not COCO's JSON: the download gave a page"),
        (gzip.compress(b"{}", mtime=0), "is a gzip archive, not COCO's JSON: unpack it"),
        (b"\xff\xd8\xff\xe0", "is a JPEG image, not COCO's JSON: give a COCO instances file"),
        (b'{"images": [', "is not complete JSON"),
        (b"image,x1,y1", "is not complete JSON"),
    ],
)
def test_annotation_files_are_called_what_they_are(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_bytes(content)
    with pytest.raises(BadAnnotations, match=f"instances.json {message}"):
        read_coco_file(tmp_path / "instances.json", Findings("instances.json"))


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors", "net.pkl"])
def test_an_image_is_refused_as_weights(name: str, tmp_path: Path) -> None:
    from resnet_backbone import load_weights

    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name, "PNG")
    with pytest.raises(ValueError, match=f"{name} is not a whole .* but a PNG image: give the file of the weights"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / name)
