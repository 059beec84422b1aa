"""What a file is, told from its first bytes: a reader that expected something else can say so.

A download that failed leaves a web page, a git-lfs pointer or an empty file under the name of the real one.
"""

from __future__ import annotations

from typing import NamedTuple

HEAD_BYTES = 512  # that `file_kind` needs


class FileKind(NamedTuple):
    """A kind of file.

    Attributes:
        what: it is called, with its article.
        fix: what to do; empty if that depends on what was expected.
        is_image: it is an image that Pillow reads.
    """

    what: str
    fix: str = ""
    is_image: bool = False


EMPTY = FileKind("an empty file (0 bytes)")
JSON = FileKind("a JSON document")
TEXT = FileKind("a text file")
TAR = FileKind("a tar archive", "unpack it (tar -xf) and give the file inside")
_PAGE_FIX = "the download gave a page (an error, a login, a licence to accept) in place of the file; download it again"
HTML = FileKind("an HTML page", _PAGE_FIX)
XML = FileKind("a web page or an XML document", _PAGE_FIX)
_CONVERT = "convert it to PNG or JPEG"
_BY_FIRST_BYTES = {
    b"version https://git-lfs": FileKind(
        "a git-lfs pointer, which stands for the file in the repository",
        "run `git lfs pull` in the repository, or download the file itself",
    ),
    b"/annex/objects/": FileKind("a git-annex pointer", "run `git annex get` in the repository"),
    b"PK\x03\x04": FileKind("a zip archive", "unpack it (unzip) and give the file inside"),
    b"\x1f\x8b": FileKind("a gzip archive", "unpack it (gunzip, or tar -xzf) and give the file inside"),
    b"BZh": FileKind("a bzip2 archive", "unpack it (bunzip2, or tar -xjf) and give the file inside"),
    b"\xfd7zXZ\x00": FileKind("an xz archive", "unpack it (unxz, or tar -xJf) and give the file inside"),
    b"\x28\xb5\x2f\xfd": FileKind("a zstd archive", "unpack it (unzstd) and give the file inside"),
    b"7z\xbc\xaf\x27\x1c": FileKind("a 7z archive", "unpack it and give the file inside"),
    b"Rar!": FileKind("a rar archive", "unpack it and give the file inside"),
    b"%PDF-": FileKind("a PDF document", _CONVERT),
    b"\x93NUMPY": FileKind("an array of NumPy (.npy)"),
    b"\xff\xd8\xff": FileKind("a JPEG image", is_image=True),
    b"\x89PNG\r\n": FileKind("a PNG image", is_image=True),
    b"GIF8": FileKind("a GIF image", is_image=True),
    b"II*\x00": FileKind("a TIFF image", is_image=True),
    b"MM\x00*": FileKind("a TIFF image", is_image=True),
}
# (start, bytes): these do not begin the file
_BY_LATER_BYTES = {
    (257, b"ustar"): TAR,
    (128, b"DICM"): FileKind("a DICOM file", _CONVERT),
    (4, b"ftyphei"): FileKind("a HEIC photograph", _CONVERT),
    (4, b"ftyphev"): FileKind("a HEIC photograph", _CONVERT),
    (4, b"ftypmif1"): FileKind("a HEIC photograph", _CONVERT),
    (4, b"ftypavif"): FileKind("an AVIF image", is_image=True),
    (4, b"ftyp"): FileKind("a video", "give its frames as images"),
    (8, b"WEBP"): FileKind("a WebP image", is_image=True),
}


def file_kind(head: bytes) -> FileKind | None:
    """Tell what a file is.

    Args:
        head: its first `HEAD_BYTES` bytes, or all of a shorter file.

    Returns:
        What it is; None if its first bytes belong to no known kind.
    """
    if not head:
        return EMPTY
    for magic, kind in _BY_FIRST_BYTES.items():
        if head.startswith(magic):
            return kind
    for (start, magic), kind in _BY_LATER_BYTES.items():
        if head[start : start + len(magic)] == magic:
            return kind
    return _text_kind(head)


def beginning(head: bytes) -> str:
    """The first characters of a text, quoted."""
    return repr(_text(head)[:40].decode("utf-8", "replace"))


def _text_kind(head: bytes) -> FileKind | None:
    text = _text(head)
    if text[:1] == b"<":
        return XML if text[:5].lower() == b"<?xml" else HTML
    if text[:1] in (b"{", b"["):
        return JSON
    try:
        characters = head[:HEAD_BYTES].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":  # which a character at the end of the head gives
            return None
        characters = head[: error.start].decode("utf-8-sig")
    return TEXT if all(c.isprintable() or c in "\t\r\n\f" for c in characters) else None


def _text(head: bytes) -> bytes:
    """Without a byte order mark and white space at the beginning."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")
