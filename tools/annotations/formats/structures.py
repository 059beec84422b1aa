"""What the converters give: a data set's folder, its splits, and COCO's content of every split."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..findings import Findings
from .tree import Tree


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        name: "train", "val", "test", or "all" where the folder has no splits.
        images: the folder that the file names are relative to.
        content: COCO's content, for formats that were converted; None for COCO files.
        annotations: the file (COCO) or folder that was read, for messages.
        findings: what the conversion repaired, dropped or refuses. Refused entries are not in `content`.
    """

    name: str
    images: Path
    content: Mapping[str, Any] | None
    annotations: Path
    findings: Findings


@dataclass(frozen=True)
class Folder:
    """A data set as it lies in a folder.

    Attributes:
        format: such as "Pascal VOC" or "COCO (Roboflow)".
        splits: by their names.
        notes: how the format was recognised and what was found, in sentences.
    """

    format: str
    splits: dict[str, Split]
    notes: list[str]


@dataclass(slots=True)
class DraftImage:
    """An image of a split while it is converted.

    Attributes:
        path: the image, relative to the folder, in POSIX form.
        width: pixels.
        height: pixels.
        objects: entries of COCO's annotations with "label" (the class) in place of the ids.
    """

    path: str
    width: int
    height: int
    objects: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        label: str,
        box: Sequence[float],
        *,
        segmentation: Any = None,
        area: float | None = None,
        ignore: bool = False,
    ) -> None:
        """Add an object.

        Args:
            label: its class.
            box: x, y, width, height, pixels.
            segmentation: polygons or RLE; None without an outline.
            area: pixels; None to leave it to the reader.
            ignore: mark an object that is neither trained on nor counted in scores, such as VOC's "difficult".
        """
        entry: dict[str, Any] = {"label": label, "bbox": [float(v) for v in box], "iscrowd": 0}
        if segmentation is not None:
            entry["segmentation"] = segmentation
        if area is not None:
            entry["area"] = area
        if ignore:
            entry["ignore"] = 1
        self.objects.append(entry)


@dataclass
class Draft:
    """A split while it is converted.

    Attributes:
        name: of the split.
        annotations: the file or folder that is read.
        findings: what was repaired, dropped or refused so far.
        images: the images so far.
    """

    name: str
    annotations: Path
    findings: Findings
    images: list[DraftImage] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, annotations: Path) -> Draft:
        """An empty split.

        Args:
            name: of the split.
            annotations: the file or folder that is read.
        """
        return cls(name, annotations, Findings(annotations))

    def lose_objects(self, count: int, entry: str) -> None:
        """Count the objects of an image that cannot be used.

        Args:
            count: number of objects; 0 adds nothing.
            entry: where they are.
        """
        if count:
            self.findings.add("dropped", "object of an image that cannot be used", entry=entry, count=count)


def sized_image(tree: Tree, draft: Draft, path: str, size: tuple[int, int] | None = None) -> DraftImage | None:
    """Add an image to a split.

    Args:
        tree: the folder.
        draft: the split.
        path: the image, relative to the folder.
        size: (width, height) as the annotations state it, pixels; None to read it from the image's header.

    Returns:
        The image; None if its size is needed and its header cannot be read, which is a refused finding.
    """
    if size is None:
        try:
            size = tree.image_size(path)
        except (OSError, SyntaxError, ValueError) as error:
            fix = "replace the file, or remove it together with its annotations"
            draft.findings.add(
                "refused", "image file that cannot be read", unit="image", entry=path, came=str(error), fix=fix
            )
            return None
    image = DraftImage(path, *size)
    draft.images.append(image)
    return image


def finish(tree: Tree, drafts: Iterable[Draft], classes: Sequence[str] | None = None) -> dict[str, Split]:
    """Make COCO's content of all splits. They share one list of categories.

    Args:
        tree: the folder.
        drafts: the splits.
        classes: the names of the classes in their order; None for the names that occur, sorted.

    Returns:
        The splits by name. Image and annotation ids are 1, 2, ... in the order of the file names.
    """
    drafts = list(drafts)
    if classes is None:
        classes = sorted({entry["label"] for draft in drafts for image in draft.images for entry in image.objects})
    ids = {name: i for i, name in reversed(list(enumerate(classes, 1)))}
    spellings: dict[str, list[str]] = {}
    for name in classes:
        spellings.setdefault("".join(name.split()).casefold(), []).append(name)
    for names in (names for names in spellings.values() if len(names) > 1 and drafts):
        what, fix = "names of classes that differ only in case or spaces", "if they are one class, merge them"
        drafts[0].findings.add("warning", what, unit="category", entry=", ".join(map(repr, names)), fix=fix)
    return {draft.name: _split(tree, draft, ids, classes) for draft in drafts}


def _split(tree: Tree, draft: Draft, ids: Mapping[str, int], classes: Sequence[str]) -> Split:
    """COCO's content of one split; file names are relative to the deepest folder that holds all of its images."""
    images = sorted(draft.images, key=lambda image: image.path)
    folders = {posixpath.dirname(image.path) for image in images}
    base = posixpath.commonpath(folders) if folders else ""
    content: dict[str, Any] = {"images": [], "annotations": []}
    for image_id, image in enumerate(images, 1):
        name = image.path[len(base) + 1 :] if base else image.path
        content["images"].append({"id": image_id, "file_name": name, "width": image.width, "height": image.height})
        for entry in image.objects:
            fields = {key: value for key, value in entry.items() if key != "label"}
            number = len(content["annotations"]) + 1
            category_id = ids[entry["label"]]
            content["annotations"].append({"id": number, "image_id": image_id, "category_id": category_id, **fields})
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return Split(draft.name, tree.root / base, content, draft.annotations, draft.findings)
