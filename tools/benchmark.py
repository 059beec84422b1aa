"""Measure speed and memory against torchvision, and against detectron2, mayaku and OpenVINO where they are installed.

python tools/benchmark.py [--rows NAME ...] [--images FOLDER] [--data FOLDER] [--out FOLDER] [--device cpu|cuda]

All contenders of a row get the same weights and inputs, and are measured in turn in one run; medians and quartiles are
printed, and how far the results agree. A large matrix product gives the arithmetic limit of the processor, and a row
whose operations can be counted says which share of it is reached. What is not installed or not measurable here is in
the table with the reason. Rows in bf16 need AMX or a GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

import shlex

from tools import cli
from tools.console import CONSOLE
from tools.devices import DEVICES, pick_device
from tools.jobs.benchmarks.rows import ROWS
from tools.jobs.benchmarks.run import benchmark
from tools.jobs.benchmarks.setting import Setting
from tools.jobs.benchmarks.table import tables


def main() -> int:
    """Run the command; the exit code."""
    parser = cli.parser(__doc__)
    parser.epilog = "\n".join(["rows:", *(f"  {name:18} {row.what}" for name, row in ROWS.items())])
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="rows to measure (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of every contender (default 5)")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where nets run (default cpu)")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="pictures to detect in (default: those of --data, or generated)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="data set for the loader, as train_det.py takes it (default: shapes)",
    )
    parser.add_argument("--scoring-images", type=int, default=5000, metavar="N", help="images to score (default 5000)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write benchmark.json, benchmark.md and plots there")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier benchmark in --out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    args = parser.parse_args()
    setting = Setting(
        device=pick_device(args.device),
        repeats=args.repeats,
        quick=args.quick,
        images=args.images,
        data=args.data,
        scoring_images=args.scoring_images,
        say=lambda line: CONSOLE.print(line, markup=False),
    )
    command = shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]])
    results = benchmark(setting, args.rows, out=args.out, overwrite=args.overwrite, command=command)
    for table in tables(results):
        CONSOLE.print(table)
    return 0


if __name__ == "__main__":
    cli.run(main, keep_memory=False)  # memory is allocated as in other programs
