"""Tables of boxes: one row per object, with or without a header.

Columns are recognised by their names: those of TensorFlow's tutorials, Open Images, Kaggle and VIA's CSV export.
Without a header the columns are image, x1, y1, x2, y2, class (keras-retinanet), which the image's size may follow
(SKU-110K), or image, width, height, class, xmin, ymin, xmax, ymax. Corners are coordinates: width = xmax - xmin.
"""

from __future__ import annotations

import csv
import json
import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..findings import BadAnnotations
from . import via
from .structures import Draft, DraftImage, Folder, finish, sized_image
from .tree import IMAGE_SUFFIXES, SPLIT_NAMES, Tree, components, split_of

ONE_CLASS = "object"
# names of columns, without case, spaces and underscores
IMAGE = (
    "filename",
    "imagepath",
    "imagename",
    "image",
    "imageid",
    "imgpath",
    "imgname",
    "img",
    "path",
    "file",
    "externalid",
)
CLASS = ("class", "label", "classname", "name", "category", "labelname", "categoryname", "species", "type", "classid")
CLASS_END = re.compile(
    r"(class|label|category|type|species)$"
)  # such as cell_type, where no column has one of these names
SPLIT = ("split", "set", "subset", "partition", "usage")
CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
    ("bboxxmin", "bboxymin", "bboxxmax", "bboxymax"),
)
SIDES = (
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("left", "top", "width", "height"),
    ("xmin", "ymin", "width", "height"),
    ("bboxx", "bboxy", "bboxw", "bboxh"),
    ("bboxx", "bboxy", "bboxwidth", "bboxheight"),
)
BOX = ("bbox", "box", "boundingbox")
VIA_SHAPE, VIA_ATTRIBUTES = "regionshapeattributes", "regionattributes"


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what.

    Attributes:
        image: number of the column.
        box: numbers of the four columns; one for a column such as "[x, y, w, h]"; none for VIA's export.
        is_corners: x1, y1, x2, y2, or else x, y, width, height.
        label: the class; None without one.
        split: the split; None without one.
        group: Open Images' IsGroupOf; None without one.
        shape: VIA's shape and attributes; None for other tables.
        has_header: whether the first row holds names.
    """

    image: int
    box: tuple[int, ...]
    is_corners: bool
    label: int | None = None
    split: int | None = None
    group: int | None = None
    shape: tuple[int, int] | None = None
    has_header: bool = True


def find(tree: Tree) -> list[str]:
    """The tables of boxes.

    Args:
        tree: the folder.

    Returns:
        Paths relative to the folder.
    """
    return [path for path in tree.with_suffix(".csv", ".tsv") if columns_of(_rows(tree, path, 2)) is not None]


def _text(tree: Tree, path: str) -> str:
    data = (tree.root / path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _rows(tree: Tree, path: str, limit: int | None = None) -> list[tuple[int, list[str]]]:
    """(line, values) of the rows; the delimiter is the one that the first line holds most of."""
    lines = _text(tree, path).splitlines()
    first = next((line for line in lines if line.strip()), "")
    delimiter = max((",", ";", "\t"), key=first.count)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    rows = []
    for row in reader:
        if any(value.strip() for value in row):
            rows.append((reader.line_num, [value.strip() for value in row]))
        if len(rows) == limit:
            break
    return rows


def columns_of(rows: Sequence[tuple[int, Sequence[str]]]) -> Columns | None:
    """Recognise the columns of a table.

    Args:
        rows: the first rows, as (line, values).

    Returns:
        The columns; None if this is no table of boxes.
    """
    if not rows:
        return None
    first = rows[0][1]
    names = [re.sub(r"[\s_\-.#]", "", value).lower() for value in first]

    def where(*options: str) -> int | None:
        return next((names.index(name) for name in options if name in names), None)

    image = where(*IMAGE)
    if image is None:
        return _without_header(first)
    if VIA_SHAPE in names and VIA_ATTRIBUTES in names:
        return Columns(image, (), False, shape=(names.index(VIA_SHAPE), names.index(VIA_ATTRIBUTES)))
    ends = [i for i, name in enumerate(names) if CLASS_END.search(name) and i != image]
    label = where(*CLASS) if where(*CLASS) is not None else ends[0] if ends else None
    split, group = where(*SPLIT), where("isgroupof")
    for options, is_corners in ((CORNERS, True), (SIDES, False)):
        for option in options:
            if all(name in names for name in option):
                return Columns(image, tuple(names.index(n) for n in option), is_corners, label, split, group)
    box = where(*BOX)
    return None if box is None else Columns(image, (box,), False, label, split, group)


def _without_header(row: Sequence[str]) -> Columns | None:
    """The columns of a table without a header, by its first row."""
    if posixpath.splitext(row[0])[1].lower() not in IMAGE_SUFFIXES:
        return None
    kinds = "".join("n" if _is_number(value) else "-" if not value else "t" for value in row[1:])
    if re.fullmatch(r"nnnn[tn](nn)?|-----(..)?", kinds):
        return Columns(0, (1, 2, 3, 4), True, label=5, has_header=False)
    if re.fullmatch(r"nntnnnn", kinds):
        return Columns(0, (4, 5, 6, 7), True, label=3, has_header=False)
    return None


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def read(tree: Tree, files: Sequence[str]) -> Folder:
    """Convert tables of boxes.

    Args:
        tree: the folder.
        files: the tables; the split comes from a column, or from their names and folders.

    Returns:
        The data set.

    Raises:
        BadAnnotations: several tables fit one split.
    """
    by_split: dict[str, list[str]] = {}
    for path in files:
        by_split.setdefault(("all" if tree.only else split_of(path, with_stem=True)) or "all", []).append(path)
    notes: list[str] = []
    if "train" in by_split and "all" in by_split:
        notes.append(f"not read, since there are tables of splits: {', '.join(by_split.pop('all'))}")
    if any(len(paths) > 1 for paths in by_split.values()) or ("all" in by_split and len(by_split) > 1):
        raise BadAnnotations(
            f"{tree.root} holds several tables of boxes ({', '.join(files[:5])}), and their names do not tell which to "
            "use: remove those that are not to be used, give the path of one file instead of the folder, or name one "
            "file of each split with train, val and test"
        )
    drafts: dict[str, Draft] = {}
    for name, (path,) in sorted(by_split.items()):
        _read_table(tree, path, name, drafts, notes)
    order = ("train", "val", "test", "all")
    return Folder("CSV", finish(tree, sorted(drafts.values(), key=lambda draft: order.index(draft.name))), notes)


def _read_table(tree: Tree, path: str, split: str, drafts: dict[str, Draft], notes: list[str]) -> None:
    """Read one table into the drafts."""
    rows = _rows(tree, path)
    columns = columns_of(rows)
    assert columns is not None
    header = rows[0][1] if columns.has_header else []
    rows = rows[1:] if columns.has_header else rows
    notes.append(f"{split}: {path}, {len(rows):,} rows, {'with' if columns.has_header else 'without'} a header")
    if columns.label is None and columns.shape is None:
        notes.append(
            f'{path} has no column of classes among {", ".join(header)}: all objects are of one class, "{ONE_CLASS}"; '
            'if one of them is the class, call it "class"'
        )
    elif header and columns.label is not None:
        notes.append(f'{path}: the column "{header[columns.label]}" is the class')
    scale = _are_fractions(columns, rows)
    if scale:
        notes.append(f"{path}: coordinates are fractions of the image")
    attribute = _via_attribute(tree, columns, rows, notes)
    images: dict[tuple[str, str], DraftImage | None] = {}
    for number, row in rows:
        entry = f"{path}:{number}"
        name = _split_of_row(columns, row) or split
        draft = drafts.setdefault(name, Draft.of(name, tree.root / path))
        if len(row) <= max(columns.image, *columns.box, *(columns.shape or (0,))):
            fix = "give every row all columns"
            draft.findings.add("refused", "row with too few values", entry=entry, came=",".join(row), fix=fix)
            continue
        key = name, row[columns.image]
        if key not in images:
            images[key] = _image(tree, draft, path, row[columns.image], entry)
        image = images[key]
        if _is_empty(columns, row):
            continue
        if image is None:
            draft.lose_objects(1, entry)
        elif columns.shape is not None:
            _add_via(draft, image, columns, row, attribute, entry)
        else:
            _add(draft, image, columns, row, scale, entry)


def _split_of_row(columns: Columns, row: Sequence[str]) -> str | None:
    if columns.split is None or columns.split >= len(row):
        return None
    return SPLIT_NAMES.get(row[columns.split].lower())


def _is_empty(columns: Columns, row: Sequence[str]) -> bool:
    """Whether a row lists an image without objects."""
    if columns.shape is not None:
        return row[columns.shape[0]] in ("", "{}")
    return all(row[i] in ("", "[]", "nan") for i in columns.box)


def _image(tree: Tree, draft: Draft, path: str, name: str, entry: str) -> DraftImage | None:
    """Find the image of a row; a name without a suffix is a stem."""
    parts = components(name)
    found = tree.find_image(name, near=path) or (tree.find_stem(parts[-1], near=path) if parts else [])
    if len(found) != 1:
        what = "several images have the name that is listed" if found else "image that is missing"
        fix = "keep one of them, or write its folder" if found else "add the image, or remove its rows"
        draft.findings.add("refused", what, unit="image", entry=entry, came=name, fix=fix)
        return None
    return sized_image(tree, draft, found[0])


def _numbers(columns: Columns, row: Sequence[str]) -> list[float] | None:
    """The four numbers of a row's box; None if they are not four finite numbers."""
    texts = (
        [row[i] for i in columns.box]
        if len(columns.box) == 4
        else re.split(r"[\s,;]+", row[columns.box[0]].strip("[]() "))
    )
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return None
    return values if len(values) == 4 and all(map(math.isfinite, values)) else None


def _are_fractions(columns: Columns, rows: Sequence[tuple[int, Sequence[str]]]) -> bool:
    """Whether all boxes are in fractions of their images, as Open Images has them."""
    if len(columns.box) != 4:
        return False
    boxes = [_numbers(columns, row) for _, row in rows if len(row) > max(columns.box)]
    values = [v for box in boxes if box is not None for v in box]
    return bool(values) and max(values) <= 1 and any(v != int(v) for v in values)


def _add(draft: Draft, image: DraftImage, columns: Columns, row: Sequence[str], scale: bool, entry: str) -> None:
    """Add the object of a row."""
    numbers = _numbers(columns, row)
    label = ONE_CLASS if columns.label is None else row[columns.label] if columns.label < len(row) else ""
    if numbers is None or not label:
        what = "box that is not four numbers" if numbers is None else "row without a class"
        draft.findings.add("refused", what, entry=entry, came=",".join(row), fix="correct the row")
        return
    if scale:
        numbers = [v * (image.width, image.height)[i % 2] for i, v in enumerate(numbers)]
    x, y, a, b = numbers
    box = [x, y, a - x, b - y] if columns.is_corners else numbers
    if min(box[2:]) <= 0:
        draft.findings.add("dropped", "box of no area, or with its corners swapped", entry=entry, came=",".join(row))
        return
    is_group = columns.group is not None and columns.group < len(row) and row[columns.group] == "1"
    if is_group:
        draft.findings.add("note", "box around a group: left out of training, ignored in scoring")
    image.add(label, box, ignore=is_group)


def _via_attribute(
    tree: Tree, columns: Columns, rows: Sequence[tuple[int, Sequence[str]]], notes: list[str]
) -> str | None:
    """The region attribute that is the class in VIA's export."""
    if columns.shape is None:
        return None
    regions = [_region(columns, row) for _, row in rows if len(row) > max(columns.shape)]
    content = {"all": {"filename": "", "regions": regions}}
    attribute, note = via.class_attribute(tree, [content])
    notes.append(note)
    return attribute


def _region(columns: Columns, row: Sequence[str]) -> Mapping[str, object] | None:
    """A region as in VIA's JSON; None if the row's JSON cannot be read."""
    assert columns.shape is not None
    try:
        shape, attributes = (json.loads(row[i] or "{}") for i in columns.shape)
    except ValueError:
        return None
    return {"shape_attributes": shape, "region_attributes": attributes}


def _add_via(
    draft: Draft, image: DraftImage, columns: Columns, row: Sequence[str], attribute: str | None, entry: str
) -> None:
    via.add_region(draft.findings, image, _region(columns, row), attribute, entry)
