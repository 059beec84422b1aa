"""Folders, zips and CIFAR-10's batches give the images and labels that torchvision reads."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from heads.images import UnreadableImage
from resnet_backbone.errors import UserError
from tools.data.labelled import LabelledData, load_labelled

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def images_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """train/{ant,bee,cow}/*.png with 3, 2 and 1 images, a text file and a stray image."""
    root = tmp_path / "folders"
    for label, (name, count) in enumerate([("ant", 3), ("bee", 2), ("cow", 1)]):
        (root / "train" / name).mkdir(parents=True)
        for number, image in enumerate(images_of(label, count)):
            Image.fromarray(image).save(root / "train" / name / f"{number}.PNG")
    (root / "train" / "ant" / "readme.txt").write_text("no image")
    (root / "train" / "stray.png").write_bytes((root / "train" / "ant" / "0.PNG").read_bytes())
    return root


def zipped(root: Path) -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root))
    return path


def same(a: LabelledData, b: LabelledData) -> bool:
    return a.records == b.records and all(np.array_equal(a.read(r), b.read(r)) for r in a.records)


def test_folders_are_read_as_torchvision_reads_them(folders: Path) -> None:
    ours = load_labelled(folders, "train")
    theirs = torchvision.datasets.ImageFolder(str(folders / "train"))
    assert list(ours.class_names) == theirs.classes == ["ant", "bee", "cow"]
    assert [r.label for r in ours.records] == theirs.targets == [0, 0, 0, 1, 1, 2]
    for record, (image, _) in zip(ours.records, theirs, strict=True):
        assert np.array_equal(ours.read(record), np.asarray(image))


def test_a_zip_equals_its_folder_in_every_process(folders: Path) -> None:
    ours = load_labelled(zipped(folders), "train")
    assert same(load_labelled(folders, "train"), ours)
    elsewhere = pickle.loads(pickle.dumps(ours))  # as for a spawned loader process
    assert same(ours, elsewhere)


def cifar_batches(root: Path, count: int = 4) -> dict[str, Any]:
    """Write files in the format of CIFAR-10: pickled dicts. Returns file name -> images and labels."""
    root.mkdir()
    seen: dict[str, Any] = {}
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images = images_of(number, count)
        labels = [(number * count + i) % 10 for i in range(count)]
        batch = {
            "batch_label": name,
            "labels": labels,
            "data": images.transpose(0, 3, 1, 2).reshape(count, -1),
            "filenames": [f"{name}_{i}.png" for i in range(count)],
        }
        (root / name).write_bytes(pickle.dumps(batch, protocol=2))
        seen[name] = images, labels
    meta = {"num_cases_per_batch": count, "label_names": list(NAMES), "num_vis": 3072}
    (root / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return seen


def test_cifar_batches_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    seen = cifar_batches(tmp_path / "cifar-10-batches-py")
    train = load_labelled(tmp_path / "cifar-10-batches-py", "train")
    test = load_labelled(tmp_path / "cifar-10-batches-py", "test")
    assert train.class_names == test.class_names == NAMES
    images = np.concatenate([seen[f"data_batch_{i}"][0] for i in range(1, 6)])
    assert np.array_equal(np.stack([train.read(r) for r in train.records]), images)
    assert [r.label for r in train.records] == [label for i in range(1, 6) for label in seen[f"data_batch_{i}"][1]]
    assert np.array_equal(np.stack([test.read(r) for r in test.records]), seen["test_batch"][0])
    # torchvision checks the checksums of the original files, so its reading is repeated here
    theirs = torchvision.datasets.CIFAR10.__new__(torchvision.datasets.CIFAR10)
    with open(tmp_path / "cifar-10-batches-py" / "test_batch", "rb") as file:
        entry = pickle.load(file, encoding="latin1")
    theirs.data = np.vstack([entry["data"]]).reshape(-1, 3, 32, 32).transpose((0, 2, 3, 1))
    assert np.array_equal(theirs.data, np.stack([test.read(r) for r in test.records]))


def test_a_batch_that_would_run_code_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "cifar-10-batches-py"
    cifar_batches(root)

    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("ran",))

    (root / "test_batch").write_bytes(pickle.dumps({"data": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="would run code when read"):
        load_labelled(root, "test")


def test_labels_of_cifar_and_imagenet_are_the_usual_ones(shared: Path) -> None:
    cifar = load_labelled(shared / "data" / "cifar10-jpeg.zip", "test")
    assert cifar.class_names == NAMES
    assert Counter(r.label for r in cifar.records) == dict.fromkeys(range(10), 1000)
    sample = shared / "data" / "imagenet-sample"
    imagenet = load_labelled(sample, class_index=sample / "wnid_to_index.json")
    index = json.loads((sample / "wnid_to_index.json").read_text())
    assert len(imagenet.class_names) == 1000 and len(imagenet.records) == 500
    assert all(index[r.name.split("/")[0]] == r.label for r in imagenet.records)
    assert all(imagenet.class_names[r.label] == r.name.split("/")[0] for r in imagenet.records)


@pytest.mark.parametrize("count", [1, 7, 100, 10_000, 20_000])
def test_evenly_spaced_images_keep_the_share_of_every_class(count: int, shared: Path) -> None:
    few = load_labelled(shared / "data" / "cifar10-jpeg.zip", "test").evenly_spaced(count)
    assert len(few.records) == len({r.image_id for r in few.records}) == min(count, 10_000)
    counts = np.bincount([r.label for r in few.records], minlength=10)
    assert counts.max() - counts.min() <= 1


def test_shuffled_labels_are_a_permutation(shared: Path) -> None:
    data = load_labelled(shared / "data" / "cifar10-jpeg.zip", "test")
    one, same_seed, other = (data.with_shuffled_labels(seed) for seed in (1, 1, 2))
    assert one.records == same_seed.records != other.records
    assert Counter(r.label for r in one.records) == Counter(r.label for r in data.records)
    kept = np.mean([a.label == b.label for a, b in zip(one.records, data.records)])
    assert kept == pytest.approx(0.1, abs=0.02)  # chance
    assert [r.name for r in one.records] == [r.name for r in data.records]


def test_images_kept_in_memory_are_decoded_once(folders: Path) -> None:
    data = load_labelled(folders, "train").kept_in_memory()
    first = data.read(data.records[0])
    (folders / "train" / data.records[0].name).unlink()
    assert data.read(data.records[0]) is first


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_error_for_a_damaged_image_names_it(kind: str, folders: Path) -> None:
    broken = folders / "train" / "bee" / "0.PNG"
    broken.write_bytes(broken.read_bytes()[:300])
    data = load_labelled(folders if kind == "folder" else zipped(folders), "train")
    bad = next(r for r in data.records if r.name == "bee/0.PNG")
    with pytest.raises(UnreadableImage, match=r"bee/0\.PNG.* cannot be read as an image"):
        data.read(bad)


def test_the_error_for_a_damaged_member_of_a_zip_names_it(folders: Path) -> None:
    """Damage within the compressed bytes is found by zlib or by the checksum of the zip, before Pillow sees it."""
    archive = folders.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train/ant/0.png", b"x" * 5000)
    damaged = bytearray(archive.read_bytes())
    damaged[50:60] = bytes(10)
    archive.write_bytes(bytes(damaged))
    data = load_labelled(archive, "train")
    with pytest.raises(UnreadableImage, match=r"train/ant/0\.png in .* cannot be read as an image"):
        data.read(data.records[0])


def test_unusable_data_is_an_error_that_names_the_fix(folders: Path, tmp_path: Path) -> None:
    cifar = tmp_path / "cifar-10-batches-py"
    cifar_batches(cifar)
    empty = tmp_path / "empty"
    empty.mkdir()
    archive = zipped(folders)
    gaps = write(tmp_path / "gaps.json", '{"ant": 0, "bee": 2, "cow": 3}')
    few = write(tmp_path / "few.json", '{"ant": 0, "bee": 1}')
    broken = write(tmp_path / "broken.json", "{")
    text = write(tmp_path / "text.json", '{"ant": "0", "bee": 1, "cow": 2}')
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(b"x" * 100 + archive.read_bytes()[-200:])
    for arguments, message in [
        ((tmp_path / "nowhere",), "no images at"),
        ((folders, "tain"), "no folder 'tain' in .*it has train: set `part`"),
        ((archive, "tain"), "no tain/CLASS/IMAGE in .*it has train: set `part`"),
        ((empty,), "no images in .*expected one folder per class"),
        ((write(tmp_path / "a.tar", "x"),), "neither a folder nor a zip: extract it"),
        ((cifar,), "set `part` to train or test"),
        ((cifar, "test", gaps), "leave class_index out"),
        ((folders, "train", tmp_path / "no.json"), "no class index at"),
        ((folders, "train", broken), "is not JSON"),
        ((folders, "train", gaps), "without gaps"),
        ((folders, "train", text), "must map every class folder to an integer label"),
        ((damaged, "train"), "is not a whole zip"),
        ((folders, "train", few), r"no label for the folders \['cow'\]"),
    ]:
        with pytest.raises(UserError, match=message):
            load_labelled(*arguments)  # type: ignore[arg-type]
    (cifar / "test_batch").write_bytes(pickle.dumps({"labels": [0]}, protocol=2))
    with pytest.raises(UserError, match="test_batch lacks data, filenames: it is no batch of CIFAR-10"):
        load_labelled(cifar, "test")
    (cifar / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="lacks data_batch_3: extract"):
        load_labelled(cifar, "train")
