"""The class lists that published detectors were trained on, in label order."""

from __future__ import annotations

from collections.abc import Mapping

# COCO's 80 categories, each at its id; the other ids up to 90 were never given to anything
_COCO = {
    1: "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant",
    13: "stop_sign parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe",
    27: "backpack umbrella",
    31: "handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard "
    "tennis_racket bottle",
    46: "wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake "
    "chair couch potted_plant bed",
    67: "dining_table",
    70: "toilet",
    72: "tv laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator",
    84: "book clock vase scissors teddy_bear hair_drier toothbrush",
}
UNUSED = "N/A"  # torchvision's name for a logit of an id that COCO never gave away
_BY_ID = {first + i: name.replace("_", " ") for first, names in _COCO.items() for i, name in enumerate(names.split())}
COCO_80 = tuple(_BY_ID.values())
COCO_90 = tuple(_BY_ID.get(category_id, UNUSED) for category_id in range(1, 91))


def class_names_in(content: object, num_classes: int, layout: str) -> tuple[str, ...] | None:
    """The class names of a file's detector: what its metadata says (ours, mmdetection 2's and 3's), or COCO's list
    where a published layout has as many classes. None where nothing says, or another number."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    told = meta.get("class_names") or meta.get("CLASSES") or (meta.get("dataset_meta") or {}).get("classes")
    if told is None and layout:
        told = COCO_90 if layout == "torchvision" else COCO_80
    return tuple(map(str, told)) if told is not None and len(told) == num_classes else None
