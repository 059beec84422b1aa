"""Find what is wrong before training does: python tools/doctor.py {data CONFIG | weights FILE} [--set a.b=c ...]

`data` sends the validation split's ground truth through the whole pipeline as if it were predictions: the loader's
resize to network scale, the predictor's way back, the RLE encoder, the category mapping, the result writer and
COCO-eval. What does not score 1 there is a fault of the pipeline or of the data, and each check names its own.
`weights` says all that a weights file says of itself, and checks a certificate: every tensor, every stage's answer.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from rich.table import Table

from heads import predictor
from heads.conventions import Conventions
from heads.files import load_detector
from heads.images import UnreadableImage
from heads.keymaps import candidates_of, layout_of
from heads.structures import Detections, ImageSize
from resnet_backbone.errors import InvalidValue
from resnet_backbone.weights.certificate import TOLERANCE, CertificateMismatch
from resnet_backbone.weights.load import WeightFile, read_weights
from resnet_backbone.weights.sources import SOURCES, AmbiguousWeights, resolve_source
from tools import cli
from tools.config.detection import RunConfig, load_config
from tools.convert_weights import recognise
from tools.data import loader
from tools.data.augment import Augment
from tools.data.coco import CocoData, ImageRecord
from tools.eval_det import load_split
from tools.evaluation import results as writer
from tools.evaluation.scores import score_coco

BOX_TOLERANCE_PX = 0.05  # float32 boxes through two resizes stay within 0.001
MIN_AP = 0.999


@dataclass(frozen=True)
class Check:
    """One named check: what was measured, against what, and what is wrong where it fails."""

    name: str
    passed: bool
    measured: str
    mend: str


def carry(record: ImageRecord, config: RunConfig) -> Detections:
    """An image's ground truth as the loader gives it at network scale, taken for detections, and brought back."""
    image = loader.read_checked(record)
    augment = Augment((config.input.test_short_side_px,), config.input.long_side_px, 0.0, masks=True)
    pixels, truth = augment(image, record, seed=0)
    network = ImageSize(height=pixels.shape[1], width=pixels.shape[2])
    seen = Detections(truth.boxes, torch.ones(len(truth)), truth.labels, truth.masks)
    return predictor.to_image(seen, network, ImageSize(height=image.shape[0], width=image.shape[1]))


def oracle(config: RunConfig) -> list[Check]:
    """The checks, in the order in which a fault should be looked for."""
    if config.data.val is None:
        raise InvalidValue("there is nothing to check: set data.val.images and data.val.annotations")
    split = config.data.val
    data = load_split(split, masks=True)
    unreadable: list[str] = []
    results: list[dict[str, Any]] = []
    for record in data.records:
        try:
            results += writer.coco_results(record.image_id, carry(record, config), data.category_ids)
        except UnreadableImage as error:
            unreadable.append(str(error))
    results = _through_a_file(results)
    checks = [
        Check(
            "images",
            not unreadable,
            f"{len(unreadable)} of {len(data.records)} differ from their annotations"
            + "".join(f"; {u}" for u in unreadable[:1]),
            "an orientation was ignored, or a file is damaged",
        )
    ]
    checks += _compare(data, results)
    if results:
        scores = score_coco(
            split.annotations, results, kinds=("bbox", "segm"), image_ids=[r.image_id for r in data.records]
        )
        for kind in ("bbox", "segm"):
            ap = scores.kinds[kind].figures["AP"] or 0.0
            checks.append(Check(f"{kind} AP", ap >= MIN_AP, f"{ap:.4f}", "the ground truth does not score as itself"))
    return checks


def _through_a_file(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        writer.write_results(path, results)
        return list(json.loads(path.read_text()))


def _compare(data: CocoData, results: Sequence[dict[str, Any]]) -> list[Check]:
    """Results against annotations, one by one: both are in the records' order."""
    truth = [
        (box, data.class_names[label], data.category_ids[label])
        for record in data.records
        for box, label in zip(record.boxes, record.labels)
    ]
    complete = len(truth) == len(results)
    checks = [Check("objects", complete, f"{len(results)} of {len(truth)}", "objects were lost on the way")]
    if not complete:
        return checks
    wrong = [name for (_, name, category), r in zip(truth, results) if r["category_id"] != category]
    want = np.array([box for box, _, _ in truth]).reshape(-1, 4)
    got = np.array([r["bbox"] for r in results]).reshape(-1, 4)
    sides = np.abs(got[:, 2:] - (want[:, 2:] - want[:, :2])).max(initial=0)
    corners = np.abs(got[:, :2] - want[:, :2]).max(initial=0)
    tolerance = BOX_TOLERANCE_PX
    differ = f"{len(wrong)} differ" + (f" ({', '.join(wrong[:3])} ...)" if wrong else "")
    return [
        *checks,
        Check("categories", not wrong, differ, "category ids are shifted or mixed up"),
        Check("box corners", bool(corners <= tolerance), f"off by {corners:.4f} px", "x and y swapped, or a shift"),
        Check("box sides", bool(sides <= tolerance), f"off by {sides:.4f} px", "width and height swapped"),
    ]


def examine_weights(path: Path) -> list[Check]:
    """Prints what the file says of itself; the checks of its certificate, none for a file of another project."""
    file = read_weights(path)
    table = Table("", "", title=str(path), show_header=False)
    for name, value in facts(file).items():
        table.add_row(name, value)
    cli.CONSOLE.print(table)
    if file.meta is None:
        return []
    tensors, stages = file.meta["tensors"], file.meta["fingerprint"]
    mend = "the file was edited or damaged, or this version computes something else: make it again"
    try:
        load_detector(file) if file.meta["kind"] == "detector" else file.certified
    except CertificateMismatch as mismatch:
        return [Check("certificate", False, str(mismatch), mend)]
    return [
        Check("tensors", True, f"{len(tensors)} have the SHA-256 that was certified", mend),
        Check("fingerprint", True, f"{', '.join(stages)} answer as they did, within {TOLERANCE:g}", mend),
    ]


def facts(file: WeightFile) -> dict[str, str]:
    """What a weights file says of itself, or what its names say."""
    count = sum(value.numel() for value in file.state.values())
    said = {"tensors": f"{len(file.state)}, {count / 1e6:.1f} million values"}
    meta = file.meta
    if meta is None:
        detector = layout_of(file.state)
        candidates = (
            candidates_of(file.state) if detector else recognise(file.state).to_native_keys(file.state).candidates
        )
        said["kind"] = f"a detector under {detector}'s names" if detector else "a net without heads"
        said["certificate"] = "none: it is not a file of ours (tools/convert_weights.py makes one of it)"
        try:
            source = (
                resolve_source(candidates, asked=None, content=file.content, path=file.path)
                if candidates
                else "unknown"
            )
            said["source"] = f"{source}: {SOURCES[source]}" if source in SOURCES else source
        except AmbiguousWeights:
            choices = (f"{name} ({SOURCES[name]})" for name in candidates)
            said["source"] = f"undecided, give source=: {'; '.join(choices)}"
        return said
    net, recipe = meta["net"], meta.get("recipe")
    said |= {"kind": str(meta["kind"]), "source": str(meta["source"])}
    said["net"] = ", ".join(f"{name} {value}" for name, value in net["spec"].items())
    said["norms"] = f"{net['norm']}, epsilon {net['norm_eps']:g}"
    said["preprocess"] = ", ".join(f"{name} {value}" for name, value in meta["preprocess"].items())
    if recipe is not None:
        said["recipe"] = f"{recipe['backbone']}, {recipe['neck']}, {'boxes' if recipe['mask'] is None else 'masks'}"
        defaults = vars(Conventions())
        other = [f"{name} {value}" for name, value in recipe["conventions"].items() if value != defaults[name]]
        said["conventions"] = f"{meta['project']}'s: {', '.join(other) or 'the defaults'}"
        said["classes"] = f"{len(meta['class_names'])}: {', '.join(meta['class_names'])}"
    return said


def main() -> int:
    parser = cli.parser(__doc__, config=RunConfig)
    parser.add_argument("what", choices=("data", "weights"), help="what to examine")
    parser.add_argument("path", type=Path, help="data: YAML that names data.val; weights: a file, or a run's folder")
    args = parser.parse_args()
    if args.what == "weights":
        checks = examine_weights(cli.checkpoint_of(args.path))
        title = "the certificate"
    else:
        checks = oracle(load_config(args.path, args.set))
        title = "the ground truth, taken for predictions"
    table = Table("check", "passed", "measured", "if not", title=title)
    for check in checks:
        table.add_row(check.name, "yes" if check.passed else "NO", check.measured, check.mend)
    if checks:
        cli.CONSOLE.print(table)
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    cli.run(main)
