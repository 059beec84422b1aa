"""The table of weights counts loaded tensors by part and lists the others."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console

from tools.report.weights import weights_table

KEYS = ("backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.num_batches_tracked", "neck.weight", "rpn.bias")


def rendered_rows(loaded: Collection[str], weights: str) -> list[str]:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(weights_table(KEYS, loaded, weights))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_loaded_tensors_are_counted_and_the_others_listed() -> None:
    rows = rendered_rows({"backbone.conv1.weight", "neck.weight"}, "resnet18.pth")
    assert "backbone 1 1 bn1.weight" in rows
    assert "neck 1 0" in rows
    assert "rpn 0 1 all" in rows


def test_the_name_of_the_file_is_complete_and_not_markup() -> None:
    rows = rendered_rows(KEYS, "/runs/[bold]/mask_rcnn_r50_fpn/checkpoints/last.pt")
    assert rows[0] == "Initial weights, from /runs/[bold]/mask_rcnn_r50_fpn/checkpoints/last.pt"
