"""Converters from the formats of annotation tools to COCO's, and the recognition of a folder's format.

| format | recognised by |
| --- | --- |
| COCO | JSON with `images`, `annotations`, `categories`: the layouts of Roboflow, CVAT, Label Studio, FiftyOne ... |
| Pascal VOC | XML files with `<annotation>`, beside the images or in `Annotations/` |
| YOLO | `data.yaml`, `obj.data` or `classes.txt`; label files of numbers named as the images |
| VIA | JSON of the VGG Image Annotator: a project or an export |
| labelme | one JSON per image with `shapes` |
| CVAT | `annotations.xml` with `<annotations>` |
| DOTA | `labelTxt/*.txt`: quadrilaterals with a class |
| CSV | one box per row |
| mask PNGs | images and masks with the same stems, or a folder per image |
"""

from __future__ import annotations

from .recognise import FORMATS, read_folder
from .structures import Folder, Split

__all__ = ["FORMATS", "Folder", "Split", "read_folder"]
