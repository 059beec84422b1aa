"""Images that are copies of each other: the same file, or the same picture resized or recompressed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIDE_PX = 32  # the picture is reduced to this before its frequencies are computed
KEPT = 8  # lowest frequencies along each axis: 8 * 8 = 64 bits
MAX_DISTANCE = 4  # bits; see near_duplicates
PAIRS_AT_ONCE = 1 << 22  # 32 MiB of 64-bit differences


def content_hash(path: str | PathLike[str]) -> str:
    """Hash a file.

    Args:
        path: the file.

    Returns:
        SHA-256 of the file's bytes, in hexadecimal. Equal for copies of a file only: the same picture saved again
        differs, which `perceptual_hashes` is for.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def perceptual_hashes(paths: Sequence[str | PathLike[str]]) -> np.ndarray:
    """Hash pictures so that those that look alike get similar bits.

    The picture is made grey and upright, reduced to 32 x 32 pixels, and transformed by a discrete cosine transform. A
    bit says whether one of the 64 lowest frequencies is above their median (pHash, Zauner, "Implementation and
    Benchmarking of Perceptual Image Hash Functions", 2010).

    Args:
        paths: N image files.

    Returns:
        (N,) uint64. A file that cannot be read gets the first bits of the SHA-256 of its bytes or, if it is missing, of
        its path, so that it resembles nothing else.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return np.array(list(threads.map(_hash, paths)), dtype=np.uint64)


def near_duplicates(
    hashes: np.ndarray, others: np.ndarray | None = None, max_distance: int = MAX_DISTANCE
) -> list[list[int]]:
    """Find pictures that resemble each other.

    Args:
        hashes: (N,) uint64, from `perceptual_hashes`.
        others: (M,) uint64, another set to compare with; None to compare the hashes with each other.
        max_distance: most bits in which near-duplicates differ. Of 790 pictures from ten public data sets, reduced to a
            half or a quarter, or saved as JPEG of quality 30, 99.7 % differed from the original by at most 4 bits and
            all by at most 6. Views of a fixed camera may be as near.

    Returns:
        Without `others`: the groups of indices that a chain of near-duplicates connects, each sorted and with two or
        more, in the order of their first index. With `others`: pairs [index, index in others], for every hash that has
        a near-duplicate there, the nearest one, in the order of the index.
    """
    hashes = np.asarray(hashes, dtype=np.uint64)
    if others is not None:
        return _nearest_pairs(hashes, np.asarray(others, dtype=np.uint64), max_distance)
    values, inverse = np.unique(hashes, return_inverse=True)
    labels = np.arange(len(values))
    rows = max(1, PAIRS_AT_ONCE // max(1, len(values)))
    for start in range(0, len(values), rows):
        near = _distances(values[start : start + rows], values[start:]) <= max_distance
        for i in np.flatnonzero(near.sum(axis=1) > 1):  # every hash is near itself
            joined = np.unique(labels[start:][near[i]])
            if len(joined) > 1:
                labels[np.isin(labels, joined)] = joined[0]
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels[inverse.reshape(-1)]):
        groups.setdefault(int(label), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _nearest_pairs(hashes: np.ndarray, others: np.ndarray, max_distance: int) -> list[list[int]]:
    """For every hash the nearest other one, if it is near enough."""
    if len(others) == 0:
        return []
    pairs = []
    rows = max(1, PAIRS_AT_ONCE // len(others))
    for start in range(0, len(hashes), rows):
        distances = _distances(hashes[start : start + rows], others)
        nearest = distances.argmin(axis=1)
        is_near = distances[np.arange(len(nearest)), nearest] <= max_distance
        pairs += [[start + int(i), int(nearest[i])] for i in np.flatnonzero(is_near)]
    return pairs


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) number of bits that differ between (N,) and (M,) uint64."""
    differing = a[:, None] ^ b[None, :]
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.asarray(np.bitwise_count(differing))
    pieces = differing.view(np.uint8).reshape(*differing.shape, 8)
    return np.unpackbits(pieces, axis=-1).sum(axis=-1, dtype=np.uint8)


def _cosines() -> np.ndarray:
    """(KEPT, SIDE_PX): the lowest rows of the matrix of the discrete cosine transform."""
    positions = (np.arange(SIDE_PX) + 0.5) * np.pi / SIDE_PX
    return np.cos(np.arange(KEPT)[:, None] * positions[None, :])


COSINES = _cosines()
WEIGHTS = np.uint64(1) << np.arange(KEPT * KEPT, dtype=np.uint64)


def _hash(path: str | PathLike[str]) -> np.uint64:
    try:
        with Image.open(path) as image:
            image.draft("L", (4 * SIDE_PX, 4 * SIDE_PX))  # JPEG files are decoded at a fraction of their size
            grey = _grey(ImageOps.exif_transpose(image))
        small = np.asarray(grey.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX), dtype=np.float64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        file = Path(path)
        name = os.fspath(path)
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        if file.is_file():
            digest = bytes.fromhex(content_hash(file))
        return np.uint64(int.from_bytes(digest[:8], "little"))
    frequencies = (COSINES @ small @ COSINES.T).reshape(-1)
    return np.uint64(WEIGHTS[frequencies > np.median(frequencies[1:])].sum(dtype=np.uint64))


def _grey(image: Image.Image) -> Image.Image:
    """Grey, 8 bits; pictures of more bits are scaled to their range."""
    if image.mode[0] not in "IF":
        return image.convert("RGB").convert("L") if image.mode in ("P", "PA") else image.convert("L")
    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    spread = values.max() - values.min()
    return Image.fromarray(((values - values.min()) * (255 / spread if spread > 0 else 0)).astype(np.uint8))
