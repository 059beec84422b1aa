"""Row of scoring: matching detections with ground truth, by every backend."""

from __future__ import annotations

from collections.abc import Iterator

from tools.evaluation.backends import Hotcoco, Pycocotools
from tools.evaluation.interface import Curves
from tools.evaluation.self_check import generated

from . import others
from .contenders import NOT_INSTALLED, Comparison, Contender, as_work
from .setting import Setting

DETECTIONS = 100


def scoring(setting: Setting) -> Iterator[Comparison]:
    """Boxes and masks of generated images with 100 detections each.

    Args:
        setting: how to run.

    Yields:
        Two comparisons.
    """
    images = min(setting.scoring_images, 20) if setting.quick else setting.scoring_images
    for kind in ("bbox", "segm"):
        data = generated(kind, DETECTIONS, images=images, wrong=DETECTIONS - 10)
        reference = Pycocotools()
        contenders = [Contender(reference.label, as_work(reference.curves, data))]
        equal = []
        if others.installed("hotcoco"):
            fast = Hotcoco()
            contenders.append(Contender(fast.label, as_work(fast.curves, data), ours=True, note="eval.backend=hotcoco"))
            setting.say(f"scoring: {kind}, comparing all arrays")
            same = _bytes(fast.curves(data)) == _bytes(reference.curves(data))
            equal.append("precision, recall and scores equal bit for bit" if same else "the arrays differ")
        else:
            contenders.append(Contender.absent("hotcoco", NOT_INSTALLED, ours=True))
        yield Comparison(
            "scoring",
            f"scoring {'boxes' if kind == 'bbox' else 'masks'}: {len(data.images)} images, {len(data.truth)} objects, "
            f"{len(data.detections)} detections",
            contenders,
            reference=reference.label,
            items=(images, "images"),
            equal=equal,
            max_repeats=3,
            warm_up=False,  # the check above was one
        )


def _bytes(curves: Curves) -> list[bytes]:
    return [array.tobytes() for array in (curves.precision, curves.recall, curves.scores)]
