"""Weights from one project to another: python tools/convert_weights.py WEIGHTS OUT [--to LAYOUT] [--recipe NAME]

Reads what `load_weights` and `build_detector` read (torchvision, timm, detectron2, mmdetection, transformers; .pth,
.safetensors, .pkl of arrays; our own files) and writes our certified file, or the state dict under another project's
names. A detector needs --recipe, whose names are those of `heads.DETECTORS`; of a net its depth is recognised.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from heads.build import DETECTORS, adopted, assemble, empty_backbone
from heads.detector import RCNN
from heads.files import load_detector, save_atomically, save_detector
from heads.keymaps import LAYOUTS as DETECTOR_LAYOUTS
from heads.keymaps import candidates_of, layout_of, to_layout
from resnet_backbone import RESNETS, ResNetBackbone, ResNetClassifier, load_weights
from resnet_backbone.errors import InvalidValue, did_you_mean
from resnet_backbone.specs import spec_from_dict
from resnet_backbone.weights.certificate import body_certificate
from resnet_backbone.weights.keymaps import Renamed, body_in_layout, rename_body
from resnet_backbone.weights.load import WeightFile, read_weights, source_of
from resnet_backbone.weights.sources import SOURCES, WeightSource
from tools import cli

# whose names a net can be given, and the layout of each
NETS = {"torchvision": "torchvision", "timm": "torchvision", "detectron2": "detectron2", "transformers": "transformers"}


def convert(file: WeightFile, out: Path, *, to: str, recipe: str | None, source: str | None) -> str:
    """Write `out`; what was written and what its host must be told, in words. Raises ValueError as loading does."""
    is_detector = file.meta["kind"] == "detector" if file.meta else layout_of(file.state) is not None
    return _detector(file, out, to, recipe, source) if is_detector else _net(file, out, to, source)


def _detector(file: WeightFile, out: Path, to: str, name: str | None, source: str | None) -> str:
    if file.meta is not None:
        detector, recipe = load_detector(file)
        said = file.meta["source"]
    else:
        if name not in DETECTORS:
            what = "give --recipe" if name is None else f"no recipe is called {name!r}"
            raise InvalidValue(f"{file} is a whole detector: {what}: {did_you_mean(name, DETECTORS)}")
        meaning = source_of(file, Renamed({}, candidates_of(file.state)), source)
        assert meaning is not None
        recipe = adopted(DETECTORS[name], meaning, file, with_stride=True)
        detector = assemble(recipe, _classes_of(file), empty_backbone(recipe))
        load_weights(detector, file, source=source)
        said = _source_name(meaning)
    if to == "ours":
        save_detector(detector, recipe, out, source=said)
        return f"{out}: our certified file, {len(detector.class_names)} classes, {said}"
    if to not in DETECTOR_LAYOUTS:
        raise InvalidValue(f"--to {to} has no detectors: give ours or {', '.join(DETECTOR_LAYOUTS)}")
    state = to_layout(detector.state_dict(), to, detector.background)
    save_atomically(_wrapped(state, to, out), out)
    return f"{out}: {len(state)} tensors under {to}'s names\n{_host_settings(detector, recipe.stride_on)}"


def _classes_of(file: WeightFile) -> int:
    ends = ("cls_score.bias", "fc_cls.bias")
    return next(len(value) for key, value in file.state.items() if key.endswith(ends)) - 1


def _net(file: WeightFile, out: Path, to: str, source: str | None) -> str:
    if to not in ("ours", *NETS):
        raise InvalidValue(f"--to {to} has no names for a net without heads: give ours or {', '.join(NETS)}")
    net = certified_net(file.meta, file.state) if file.meta else recognise(file.state)
    meaning = source_of(file, net.to_native_keys(file.state), source)
    if meaning is not None and meaning.stride_on != net.spec.stride_on and net.spec.block.expansion > 1:
        net = recognise(file.state, stride_on=meaning.stride_on)
    report = load_weights(net, file, source=source)
    said = file.meta["source"] if file.meta else "unknown" if meaning is None else _source_name(meaning)
    if to == "ours":
        kept = {name: file.meta[name] for name in ("kind", "class_names") if name in file.meta} if file.meta else {}
        save_atomically({"model": net.state_dict(), "meta": body_certificate(net, source=said, **kept)}, out)
        return f"{out}: our certified file, {len(report.loaded)} tensors, {said}"
    state = body_in_layout(net.state_dict(), NETS[to])
    save_atomically(_wrapped(state, to, out), out)
    return f"{out}: {len(state)} tensors under {to}'s names\n{_pixels(net.preprocess)}, {_stride(net.spec.stride_on)}"


def certified_net(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> ResNetBackbone | ResNetClassifier:
    """The net that a file of ours describes, with live norms; a classifier where it has the linear layer."""
    spec, levels = spec_from_dict(meta["net"]["spec"]), meta["net"]["out_levels"]
    norm, eps = "gn" if meta["net"]["norm"] == "gn" else "bn", meta["net"]["norm_eps"]
    if "fc.weight" in state:
        return ResNetClassifier(spec, num_classes=len(state["fc.weight"]), norm=norm)
    return ResNetBackbone(spec, norm=norm, norm_eps=eps, out_levels=levels)


def recognise(state: dict[str, Tensor], *, stride_on: str = "3x3") -> ResNetBackbone | ResNetClassifier:
    """The net of `RESNETS` whose tensors these are, with live norms so that none is dropped; a classifier where they
    have its linear layer. A plain net has the tensors of its residual twin with shortcut A, and is taken for that.
    Raises ValueError where no net fits."""
    for name, spec in RESNETS.items():
        with torch.device("meta"):
            net = ResNetClassifier(name)
        keys = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        found = rename_body(state, keys).state
        own = {key for key in found if not key.startswith("fc.") and not key.endswith("num_batches_tracked")}
        wanted = {key for key in keys if not key.startswith("fc.") and not key.endswith("num_batches_tracked")}
        if own == wanted and all(found[key].shape == keys[key] for key in own):
            spec = type(spec)(**{**vars(spec), "stride_on": stride_on if spec.block.expansion > 1 else "3x3"})
            if "fc.weight" in found:
                return ResNetClassifier(spec, num_classes=len(found["fc.weight"]))
            return ResNetBackbone(spec, norm="bn", out_levels=[stage.level for stage in spec.stages])
    raise InvalidValue(f"these are the tensors of no net that we know ({', '.join(RESNETS)}), nor of a detector")


def _source_name(meaning: WeightSource) -> str:
    return next((name for name, row in SOURCES.items() if row == meaning), str(meaning))


def _wrapped(state: dict[str, Tensor], to: str, out: Path) -> dict[str, object]:
    """detectron2 reads a dict with "model", mmdetection one with "state_dict", the others the state dict itself."""
    if out.suffix == ".safetensors" or to == "detectron2":
        return {"model": state, "__author__": "resnet-backbone"}
    return {"state_dict": state} if to == "mmdetection" else dict(state)


def _pixels(rule: object) -> str:
    values = vars(rule)
    colours = ", ".join(f"{name} {values[name]}" for name in ("channel_order", "value_range", "mean", "std"))
    return f"its host must be told: {colours}"


def _stride(stride_on: str) -> str:
    return f"the stride on a bottleneck's {stride_on}"


def _host_settings(detector: RCNN, stride_on: str) -> str:
    eps = detector.box_head.conventions.norm_eps
    return f"{_pixels(detector.preprocess)}, {_stride(stride_on)}, norms with an epsilon of {eps:g}"


def main() -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("weights", help="a file, a run's folder, or a published name (imagenet1k_v1 with --net)")
    parser.add_argument("out", type=Path, help=".pth or .safetensors")
    choices = ("ours", *dict.fromkeys((*NETS, *DETECTOR_LAYOUTS)))
    parser.add_argument("--to", default="ours", choices=choices, help="whose names (default ours, with a certificate)")
    parser.add_argument("--recipe", help=f"for a detector: {', '.join(DETECTORS)}")
    parser.add_argument("--net", help="for a published name: resnet18, resnet50, ...")
    parser.add_argument("--source", choices=tuple(SOURCES), help="whose the weights are, where the file does not tell")
    args = parser.parse_args()
    if args.out.suffix not in (".pth", ".safetensors"):
        raise InvalidValue(f"{args.out}: name it .pth or .safetensors")
    given = cli.checkpoint_of(Path(args.weights)) if Path(args.weights).is_dir() else args.weights
    file = read_weights(given, net=args.net)
    cli.CONSOLE.print(convert(file, args.out, to=args.to, recipe=args.recipe, source=args.source))
    return 0


if __name__ == "__main__":
    cli.run(main)
