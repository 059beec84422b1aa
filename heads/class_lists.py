"""COCO's class names, in the order of the labels of published detectors."""

from __future__ import annotations

from collections.abc import Mapping

# COCO's 80 categories: first id of a run -> names of the following ids; the other ids up to 90 are not used
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
UNUSED = "N/A"  # torchvision's name for the logits of ids that COCO does not use
_BY_ID = {first + i: name.replace("_", " ") for first, names in _COCO.items() for i, name in enumerate(names.split())}
COCO_80 = tuple(_BY_ID.values())
COCO_90 = tuple(_BY_ID.get(category_id, UNUSED) for category_id in range(1, 91))


def class_names_in(content: object, num_classes: int, layout: str) -> tuple[str, ...] | None:
    """Find the class names of the detector in a file.

    Args:
        content: everything that the file holds. Its metadata is read, of this project, mmdetection 2 or mmdetection 3.
        num_classes: number of classes of the detector.
        layout: the key names of the file (a key of `heads.keymaps.LAYOUTS`), "" for native keys. Without
            metadata, COCO's names are assumed for a project's layout.

    Returns:
        The names in the order of the labels. None if they are unknown, or their number is not `num_classes`.
    """
    meta = content.get("meta") if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    names = meta.get("class_names") or meta.get("CLASSES") or (meta.get("dataset_meta") or {}).get("classes")
    if names is None and layout:
        names = COCO_90 if layout == "torchvision" else COCO_80
    return tuple(map(str, names)) if names is not None and len(names) == num_classes else None
