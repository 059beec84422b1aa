"""Near-duplicates are found, and only those; large sets take seconds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tools.annotations import similar
from tools.annotations.similar import content_hash, near_duplicates, perceptual_hashes


def save_scene(path: Path, seed: int, *, scale: float = 1.0, quality: int = 95, mode: str = "RGB") -> Path:
    """A smooth random picture, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    size = int(320 * scale), int(240 * scale)
    picture = Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).resize(size)
    picture.convert(mode).save(path, quality=quality)
    return path


@pytest.mark.parametrize(
    "change", [{"scale": 0.25}, {"scale": 1.7}, {"quality": 20}, {"mode": "L"}], ids=lambda change: str(change)
)
def test_copies_resized_or_recompressed_are_near_duplicates_and_other_pictures_are_not(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    paths = [save_scene(tmp_path / f"{i}.png", i) for i in range(20)]
    copies = [save_scene(tmp_path / f"copy{i}.jpg", i, **change) for i in range(20)]
    hashes, others = perceptual_hashes(paths), perceptual_hashes(copies)
    assert near_duplicates(hashes) == []
    assert near_duplicates(hashes, others) == [[i, i] for i in range(20)]


def test_a_turned_photograph_with_an_exif_orientation_is_a_near_duplicate(tmp_path: Path) -> None:
    with Image.open(save_scene(tmp_path / "a.png", 1)) as picture:
        turned = picture.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6
        turned.save(tmp_path / "b.jpg", exif=exif)
    assert near_duplicates(perceptual_hashes([tmp_path / "a.png", tmp_path / "b.jpg"])) == [[0, 1]]


def test_pictures_of_16_bits_are_compared_over_their_range(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        coarse = Image.fromarray(rng.integers(0, 255, (9, 12), dtype=np.uint8)).resize((120, 90))
        values = np.asarray(coarse).astype(np.uint16) * 3 + 300  # far above 255: white in Pillow's conversion
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    assert near_duplicates(perceptual_hashes(sorted(tmp_path.glob("*.png")))) == []


def test_unreadable_files_resemble_only_their_copies(tmp_path: Path) -> None:
    for name, content in (("a.jpg", b"no image"), ("b.jpg", b"no image"), ("c.jpg", b"another"), ("d.jpg", b"")):
        (tmp_path / name).write_bytes(content)
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "missing.jpg"]
    assert near_duplicates(perceptual_hashes(paths)) == [[0, 1]]
    assert content_hash(paths[0]) == content_hash(paths[1]) != content_hash(paths[2])


@pytest.mark.parametrize("is_numpy_2", [True, False])
def test_groups_are_the_connected_components_of_all_pairs(is_numpy_2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_numpy_2:
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    monkeypatch.setattr(similar, "PAIRS_AT_ONCE", 64)  # several blocks
    rng = np.random.default_rng(3)
    hashes = rng.integers(0, 64, 60, dtype=np.uint64) << np.uint64(20)
    groups = near_duplicates(hashes, max_distance=1)
    labels = list(range(60))
    for _ in range(60):  # by brute force
        for i in range(60):
            for j in range(60):
                if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 1:
                    labels[i] = labels[j] = min(labels[i], labels[j])
    expected = [[i for i in range(60) if labels[i] == label] for label in sorted(set(labels))]
    assert groups == [group for group in expected if len(group) > 1]


def test_twenty_thousand_hashes_are_compared_in_seconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    hashes[10_000:] = hashes[:10_000] ^ np.uint64(1)
    began = time.perf_counter()
    groups = near_duplicates(hashes)
    assert len(groups) == 10_000 and groups[7] == [7, 10_007]
    assert time.perf_counter() - began < 5
