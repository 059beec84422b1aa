"""Check data before training, or a weight file.

python tools/doctor.py {data CONFIG | weights FILE} [--set a.b=c ...]

`data` scores the ground truth of the validation split as if it were predictions. It passes through the loader, the
predictor's resize, the RLE encoder, the category mapping, the result writer and COCO-eval; a score below 1 means an
error in the data or in this pipeline, and the checks show where. `weights` prints what is known of a weight file, and
checks every tensor and the outputs of every stage against its certificate.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

from rich.table import Table

from resnet_backbone.build import open_weights
from tools import cli
from tools.config.detection import RunConfig, load_config
from tools.console import CONSOLE
from tools.jobs.doctor import check_certificate, check_data
from tools.jobs.weights import describe_file


def main() -> int:
    """Run the command; the exit code is 1 if a check failed."""
    parser = cli.parser(__doc__, config=RunConfig)
    parser.add_argument("what", choices=("data", "weights"), help="what to check")
    parser.add_argument("path", type=Path, help="data: a YAML file with data.val; weights: a file, or a run's folder")
    args = parser.parse_args()
    if args.what == "weights":
        file = open_weights(args.path)
        facts = Table("", "", title=str(file), show_header=False)
        for name, text in describe_file(file).items():
            facts.add_row(name, text)
        CONSOLE.print(facts)
        checks, title = check_certificate(file), "the file against its certificate"
    else:
        checks, title = check_data(load_config(args.path, args.set)), "the ground truth, scored as predictions"
    table = Table("check", "passed", "measured", "likely cause if not", title=title)
    for check in checks:
        table.add_row(check.name, "yes" if check.passed else "NO", check.measured, check.cause)
    if checks:
        CONSOLE.print(table)
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    cli.run(main)
