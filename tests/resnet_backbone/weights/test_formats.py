"""Files that are not what their names say: read by content where that is safe, otherwise called what they are."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from resnet_backbone import UserError, load_weights
from resnet_backbone.build import open_weights
from resnet_backbone.weights.read import read_file

NAMES = ("net.pth", "net.safetensors", "net.pkl", "net.bin", "net.pth.tar")


def linear() -> nn.Linear:
    return nn.Linear(3, 2)


def write_legacy(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("write", [torch.save, write_legacy, save_file])
def test_weights_under_any_name_are_read_by_their_content(
    name: str, write: Callable[..., None], tmp_path: Path
) -> None:
    source, model = linear(), linear()
    write(source.state_dict(), tmp_path / name)
    report = load_weights(model, tmp_path / name)
    assert torch.equal(model.weight, source.weight)
    same = name.endswith(".safetensors") == (write is save_file) and not name.endswith(".pkl")
    assert (report.notes == ()) == same
    assert same or report.notes[0].startswith("read as a ")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty one .0 bytes.: copy or download it again"),
        (b"<!DOCTYPE html><html>404 Not Found</html>", "an HTML page .it begins '<!DOCTYPE html><html>404"),
        (b"\n\n  <html><body>Sign in</body></html>", "an HTML page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page or an XML document"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102\n",
            "a git-lfs pointer.*run `git lfs pull`",
        ),
        (b"/annex/objects/SHA256E-s1--ab.pth\n", "a git-annex pointer.*git annex get"),
        (b"\x1f\x8b\x08\x00rest", "a gzip archive: unpack it"),
        (b"\x89HDF\r\n\x1a\nrest", "an HDF5 file, as Keras writes it"),
    ],
)
def test_what_a_failed_download_leaves_is_called_what_it_is(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is not a whole .* but {message}"):
        load_weights(linear(), tmp_path / name)


def test_programs_are_refused_and_their_state_dict_is_read_as_the_message_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, model = linear(), linear()
    torch.jit.script(source).save("net.pth")
    with pytest.raises(ValueError, match="a TorchScript archive, which holds a program: save its state dict") as error:
        load_weights(model, "net.pth")
    exec(str(error.value).split("save its state dict: ")[1])  # the fix, literally
    load_weights(model, "weights.pth")
    assert torch.equal(model.weight, source.weight)
    torch.export.save(torch.export.export(source, (torch.zeros(1, 3),)), "net.pt2")
    with pytest.raises(ValueError, match=r"a program of torch.export.*torch.export.load\('net.pt2'\).state_dict"):
        load_weights(model, "net.pt2")
    torch.save(source, "whole.pth")
    with pytest.raises(ValueError, match=r"would run code when read \(torch.nn.modules.linear.Linear\)"):
        load_weights(model, "whole.pth")


def test_archives_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    torch.save(linear().state_dict(), tmp_path / "inside.pth")
    with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
        archive.write(tmp_path / "inside.pth", "inside.pth")
    with tarfile.open(tmp_path / "net.pth.tar", "w") as tar:
        tar.add(tmp_path / "inside.pth", "inside.pth")
    np.savez(tmp_path / "net.npz", weight=np.ones(3))
    for name, what in [
        ("net.zip", "a zip archive of inside.pth: unpack it"),
        ("net.pth.tar", "a tar archive of inside.pth: unpack it"),
        ("net.npz", "NumPy's archive of arrays"),
    ]:
        with pytest.raises(ValueError, match=f"{name} is not a whole torch file but {what}"):
            load_weights(linear(), tmp_path / name)


def test_an_unpacked_torch_file_is_recognised_and_can_be_packed_again(tmp_path: Path) -> None:
    source, model = linear(), linear()
    torch.save(source.state_dict(), tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "net.pth") as archive:
        archive.extractall(tmp_path / "unpacked")
    folder = tmp_path / "unpacked" / "net"
    with pytest.raises(ValueError, match=r"a torch file that was unpacked: pack its folder again \(`zip -0 -r net.pth"):
        load_weights(model, folder)
    with zipfile.ZipFile(tmp_path / "again.pth", "w") as archive:  # what `zip -0 -r` does
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    load_weights(model, tmp_path / "again.pth")
    assert torch.equal(model.weight, source.weight)


def test_a_distributed_checkpoint_is_recognised(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(linear().state_dict(), checkpoint_id=tmp_path / "step_10", no_dist=True)
    with pytest.raises(ValueError, match=r"a distributed checkpoint of torch.*format_utils dcp_to_torch"):
        load_weights(linear(), tmp_path / "step_10")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pth").mkdir()
    with pytest.raises(FileNotFoundError, match=r"net.pth has no model.safetensors .*index.json.*: name the folder"):
        load_weights(linear(), tmp_path / "net.pth")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES), write=st.sampled_from([torch.save, write_legacy, save_file]))
def test_a_damaged_file_is_a_users_error_whatever_the_damage(
    data: st.DataObject, name: str, write: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / name
    write({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    said = ""
    try:
        load_weights(linear(), path)
    except UserError as error:
        said = str(error)
    assert not said or str(path) in said


@given(content=st.binary(max_size=300), name=st.sampled_from(NAMES))
def test_any_bytes_are_a_users_error(content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=name):
        open_weights(path)


def test_reading_agrees_with_safetensors_own_reader(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "a.bin")
    ours, theirs = read_file(tmp_path / "a.bin"), load_file(tmp_path / "a.bin")
    assert isinstance(ours, dict) and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_json_document_is_not_taken_for_a_torch_file(tmp_path: Path) -> None:
    (tmp_path / "config.pth").write_text(json.dumps({"architectures": ["ResNet"]}))
    with pytest.raises(ValueError, match=r"but a JSON document .*give the file of the weights, or for a sharded model"):
        load_weights(linear(), tmp_path / "config.pth")
