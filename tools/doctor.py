"""Check data before training, or a weight file.

python tools/doctor.py {data CONFIG_OR_FOLDER | weights FILE} [--json] [--set a.b=c ...]

`data` reads the training and the validation split as training would, says everything that is doubtful, and scores the
ground truth as if it were predictions: it passes through the loader, the predictor's resize, the RLE encoder, the
category mapping, the result writer and COCO-eval. A score below 1 means an error in the data or in this pipeline, and
the checks show where. Then classes, sizes, duplicates and images in both splits are counted. `weights` prints what is
known of a weight file, and checks every tensor and the outputs of every stage against its certificate.

A check passes (yes), passes but deserves a look (look), or fails (NO). The exit code is 1 if one fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from resnet_backbone.build import open_weights
from tools import cli
from tools.config.detection import RunConfig
from tools.console import CONSOLE
from tools.jobs.doctor import Check, check_certificate, check_data, data_config
from tools.jobs.weights import describe_file


def main() -> int:
    """Run the command; the exit code is 1 if a check failed."""
    parser = cli.parser(__doc__, config=RunConfig)
    parser.add_argument("what", choices=("data", "weights"), help="what to check")
    parser.add_argument(
        "path", type=Path, help="data: a folder of data, or a YAML file; weights: a file, or a run's folder"
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    args = parser.parse_args()
    if args.what == "weights":
        file = open_weights(args.path)
        facts = Table("", "", title=escape(str(file)), show_header=False)
        for name, text in describe_file(file).items():
            facts.add_row(name, escape(text))
        if not args.json:
            CONSOLE.print(facts)
        checks, title = check_certificate(file), "the file against its certificate"
    else:
        checks, title = check_data(data_config(args.path, args.set)), "the data, and the ground truth as predictions"
    if args.json:
        print(json.dumps([asdict(check) | {"verdict": check.verdict} for check in checks], indent=1))
    elif checks:
        CONSOLE.print(_table(checks, title))
    return 0 if all(check.passed for check in checks) else 1


def _table(checks: Sequence[Check], title: str) -> Table:
    table = Table("split", "check", "passed", "measured", "likely cause, or what to do", title=title)
    for check in checks:
        style = {"NO": "bold red", "look": "yellow"}.get(check.verdict)
        cause = "" if check.verdict == "yes" else check.cause
        table.add_row(check.split, check.name, check.verdict, escape(check.measured), escape(cause), style=style)
    return table


if __name__ == "__main__":
    cli.run(main)
