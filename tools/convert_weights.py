"""Convert weights between projects.

python tools/convert_weights.py WEIGHTS OUT [--to LAYOUT] [--recipe NAME] [--source SOURCE]

Reads weights of torchvision, timm, detectron2, mmdetection, transformers and this project (.pth, .safetensors, .pkl of
arrays), and writes a certified file of this project, or a state dict with the keys of another project. The depth of a
net is recognised; a detector of another project needs --recipe, a name in `heads.DETECTORS`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

from heads.recipes import DETECTORS
from resnet_backbone.weights.sources import SOURCES
from tools import cli
from tools.console import CONSOLE
from tools.jobs.weights import LAYOUTS, convert


def main() -> int:
    """Run the command; the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="a file, the folder of a run, or a published name with --net"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write, .pth or .safetensors")
    parser.add_argument("--to", default="ours", choices=LAYOUTS, help="keys of which project (default ours, certified)")
    parser.add_argument("--recipe", help=f"for a detector: {', '.join(DETECTORS)}")
    parser.add_argument("--net", help="for a published name (imagenet1k_v1): resnet18, resnet50, ...")
    parser.add_argument("--source", choices=tuple(SOURCES), help="source, if the file does not identify it")
    args = parser.parse_args()
    options = {"to": args.to, "recipe": args.recipe, "source": args.source, "net": args.net}
    CONSOLE.print(convert(args.weights, args.out, **options), markup=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
