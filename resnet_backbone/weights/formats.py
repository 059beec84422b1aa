"""What a file is, told from its content: its name may say something else.

Weights come as safetensors, torch files and pickles of arrays. A download that failed leaves a web page, a git-lfs
pointer or an empty file under the same name; these are called what they are, with what to do.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Literal, NoReturn

from ..errors import InvalidValue
from ..file_kinds import HEAD_BYTES, HTML, JSON, TAR, TEXT, XML, beginning, file_kind

Format = Literal["safetensors", "torch", "pickle"]
NAMES: dict[Format, str] = {
    "safetensors": "safetensors file", "torch": "torch file", "pickle": "pickle of arrays"
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
_LEGACY_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch's magic number, pickled
_AGAIN = "copy or download it again"
_STATE_DICT = "torch.save(model.state_dict(), ...) or safetensors"
# kinds of other programs' files that hold weights too: first bytes -> what it is
_OTHER_WEIGHTS = {b"\x89HDF\r\n": "an HDF5 file, as Keras writes it", b"GGUF": "a GGUF file"}


def format_of(path: Path) -> Format:
    """Tell how a file must be read.

    Args:
        path: the file.

    Returns:
        The format of its content; for content without a mark, that of its suffix.

    Raises:
        InvalidValue: the content is no weights; the message says what it is and what to do.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        _refuse(path, "an empty one (0 bytes)", _AGAIN)
    if head.startswith(b"PK\x03\x04"):
        return _check_zip(path)
    if head.startswith(_LEGACY_TORCH):
        return "torch"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES:
        return "safetensors"
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        return "pickle"
    _refuse_known(path, head)
    return by_suffix(path)


def by_suffix(path: Path) -> Format:
    """The format that the name of a file promises: `.safetensors`, `.pkl`, and torch's for every other suffix."""
    known: dict[str, Format] = {".safetensors": "safetensors", ".pkl": "pickle"}
    return known.get(path.suffix, "torch")


def _refuse(path: Path, what: str, fix: str) -> NoReturn:
    raise InvalidValue(f"{path} is not a whole {NAMES[by_suffix(path)]} but {what}: {fix}")


def _refuse_known(path: Path, head: bytes) -> None:
    """Raise for text and for the formats of other programs."""
    for magic, what in _OTHER_WEIGHTS.items():
        if head.startswith(magic):
            _refuse(path, what, "give weights of a net in PyTorch")
    kind = file_kind(head)
    if kind in (HTML, XML):
        _refuse(path, f"{kind.what} (it begins {beginning(head)})", kind.fix)
    if kind is JSON and path.suffix != ".pkl":  # pickles of protocol 0 are text too
        fix = "give the file of the weights, or for a sharded model the .index.json or its folder"
        _refuse(path, f"{kind.what} (it begins {beginning(head)})", fix)
    if kind is TAR:
        _refuse_tar(path)
    if kind not in (None, JSON, TEXT):
        _refuse(path, kind.what, kind.fix or "give the file of the weights")
    if path.suffix == ".onnx":
        _refuse(path, "an ONNX graph", f"save the state dict of the net that it was exported from ({_STATE_DICT})")


def _refuse_tar(path: Path) -> NoReturn:
    try:
        with tarfile.open(path) as archive:
            names = archive.getnames()
    except tarfile.TarError:
        _refuse(path, "a tar archive that is damaged", _AGAIN)
    if {"pickle", "storages", "tensors"} <= set(names):
        fix = f"load it with the version that wrote it and save its state dict ({_STATE_DICT})"
        _refuse(path, "an archive of torch before 0.1.10, which is not read", fix)
    _refuse(path, f"a tar archive of {_first(names)}", "unpack it (tar -xf) and give the file inside")


def _check_zip(path: Path) -> Format:
    """Tell a torch file from the other kinds of zip archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:  # the directory of the archive is at its end
        _refuse(path, f"a zip archive without its end ({path.stat().st_size:,} bytes): the file was cut off", _AGAIN)
    inner = {name.partition("/")[2] for name in names}
    if {"archive_format", "serialized_exported_program.json"} & (inner | set(names)):
        fix = f"save the state dict of the program: torch.export.load({path.name!r}).state_dict, with torch.save"
        _refuse(path, "a program of torch.export", fix)
    if "data.pkl" in inner and any(name.startswith("code/") for name in inner):
        fix = f"save its state dict: torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')"
        _refuse(path, "a TorchScript archive, which holds a program", fix)
    if "data.pkl" in inner:
        return "torch"
    what = "NumPy's archive of arrays (.npz)" if all(n.endswith(".npy") for n in names) and names else "a zip archive"
    if what.startswith("NumPy"):
        _refuse(path, what, "save the arrays as tensors (torch.save, or safetensors)")
    _refuse(path, f"{what} of {_first(names)}", "unpack it and give the file inside")


def _first(names: list[str]) -> str:
    return (", ".join(names[:3]) or "nothing") + (f" and {len(names) - 3} more" if len(names) > 3 else "")
