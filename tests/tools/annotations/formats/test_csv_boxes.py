"""CSV: the columns of several sources, with and without a header, and rows that are wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tools.annotations.findings import BadAnnotations
from tools.annotations.formats import read_folder

PICTURE = (64, 48)
# tables of the same object: a cat at x 8, y 12, 16 wide and 24 high in a.png; b.png has none where the table can say so
TABLES = {
    "TensorFlow's tutorials": "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,64,48,cat,8,12,24,36\n",
    "keras-retinanet": "images/a.png,8,12,24,36,cat\nimages/b.png,,,,,\n",
    "SKU-110K": "a.png,8,12,24,36,cat,64,48\n",
    "TensorFlow's, no header": "a.png,64,48,cat,8,12,24,36\n",
    "Open Images": (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n"
        "a,xclick,cat,1,0.125,0.375,0.25,0.75,0,0\n"
    ),
    "Kaggle, one column": 'image_id,width,height,bbox,class\na,64,48,"[8.0, 12.0, 16.0, 24.0]",cat\nb,64,48,[],\n',
    "Kaggle, four columns": "image_id,x,y,w,h,label\na.png,8,12,16,24,cat\n",
    "sides called width and height": "Image Path;Label;x;y;width;height\r\nC:\\x\\a.png;cat;8;12;16;24\r\n",
    "another name of the class": "filename,cell_type,xmin,xmax,ymin,ymax\na.png,cat,8,24,12,36\n",
    "tabs": "path\tx1\ty1\tx2\ty2\tclass_name\n./images/a.png\t8\t12\t24\t36\tcat\n",
    "quotes and spaces": '"filename", "xmin", "ymin", "xmax", "ymax", "class"\n"a.png", 8, 12, 24, 36, "cat"\n',
    "VIA": (
        "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
        'a.png,1,"{}",1,0,"{""name"":""rect"",""x"":8,""y"":12,""width"":16,""height"":24}","{""kind"":""cat""}"\n'
        'b.png,1,"{}",0,0,"{}","{}"\n'
    ),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_columns_of_many_sources_are_recognised(table: str, folder: Any, objects: Any) -> None:
    root = folder(
        {"images/a.png": PICTURE, "images/b.png": PICTURE, "boxes.csv": "\ufeff" + table, "classes.csv": "cat,0\n"}
    )
    data = read_folder(root)
    found = objects(data.splits["all"])
    assert data.format == "CSV" and found["a.png"] == [("cat", 8, 12, 16, 24)]
    assert ("b.png" in found) == ("b.png" in table or "\nb," in table)
    assert found.get("b.png", []) == [] and data.splits["all"].findings.lines() == []


def test_a_table_without_classes_gives_one_class_and_says_so(folder: Any, objects: Any) -> None:
    data = read_folder(folder({"a.png": PICTURE, "t.csv": 'image_id,bbox\na,"[1, 2, 3, 4]"\n'}))
    assert objects(data.splits["all"]) == {"a.png": [("object", 1, 2, 3, 4)]}
    assert any("no column of classes among image_id, bbox" in note for note in data.notes)


def test_splits_come_from_the_names_of_tables_or_a_column(folder: Any, objects: Any) -> None:
    row = "{}.png,64,48,cat,8,12,24,36\n"
    pictures = {f"{name}.png": PICTURE for name in "abc"}
    header = TABLES["TensorFlow's tutorials"].splitlines()[0] + "\n"
    files = {"train_labels.csv": header + row.format("a"), "test_labels.csv": header + row.format("b")}
    data = read_folder(folder({**pictures, **files, "labels.csv": header + row.format("a") + row.format("b")}))
    assert list(data.splits) == ["train", "test"] and list(objects(data.splits["test"])) == ["b.png"]
    assert any("not read" in note and "labels.csv" in note for note in data.notes)
    assert any("1 images are not used, such as c.png" in note for note in data.notes)


def test_a_column_of_splits_is_used(folder: Any, objects: Any) -> None:
    table = "split,filename,xmin,ymin,xmax,ymax,class\nTRAIN,a.png,1,1,5,5,cat\nvalidation,b.png,1,1,5,5,cat\n"
    data = read_folder(folder({"a.png": PICTURE, "b.png": PICTURE, "t.csv": table}))
    assert {name: list(objects(split)) for name, split in data.splits.items()} == {"train": ["a.png"], "val": ["b.png"]}


def test_groups_of_open_images_are_ignored_objects(folder: Any) -> None:
    table = TABLES["Open Images"][:-2] + "1\n"
    split = read_folder(folder({"a.png": PICTURE, "t.csv": table})).splits["all"]
    assert split.content is not None and split.content["annotations"][0]["ignore"] == 1


BAD_ROWS = {
    "text": "a.png,one,12,24,36,cat",
    "missing number": "a.png,8,,24,36,cat",
    "not finite": "a.png,nan,12,24,36,cat",
    "infinite": "a.png,8,12,inf,36,cat",
    "no class": "a.png,8,12,24,36,",
    "too few values": "a.png,8,12",
}


@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_refused_with_file_and_line_and_the_others_kept(bad: str, folder: Any, objects: Any) -> None:
    table = f"a.png,8,12,24,36,cat\n\n{bad}\na.png,8,12,8,36,cat\n"
    split = read_folder(folder({"a.png": PICTURE, "t.csv": table})).splits["all"]
    assert objects(split) == {"a.png": [("cat", 8, 12, 16, 24)]}
    assert split.findings.count("refused") == 1 and split.findings.count("dropped") == 1
    with pytest.raises(BadAnnotations, match=r"t\.csv:3"):
        split.findings.raise_if_refused()


def test_missing_images_are_refused_once_each_with_their_objects_counted(folder: Any) -> None:
    table = TABLES["keras-retinanet"] + "gone.png,1,1,2,2,cat\ngone.png,1,1,2,2,cat\n"
    split = read_folder(folder({"images/a.png": PICTURE, "images/b.png": PICTURE, "t.csv": table})).splits["all"]
    assert split.findings.count("refused", "image") == 1 and split.findings.count("dropped") == 2


def test_several_tables_are_an_error_unless_one_is_named(folder: Any) -> None:
    files = {"images/a.png": PICTURE, "images/b.png": PICTURE, "one.csv": TABLES["keras-retinanet"]}
    root = folder({**files, "two.csv": TABLES["keras-retinanet"]})
    with pytest.raises(BadAnnotations, match="one.csv, two.csv.*give the path of one file"):
        read_folder(root)
    assert read_folder(root / "two.csv").format == "CSV"
