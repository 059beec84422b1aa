"""The benchmark measures what it says: ratios of its own medians, nothing left out in silence, and shares of a limit.

No test depends on how long anything takes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heads.structures import Detections
from resnet_backbone.errors import AlreadyExists, InvalidValue
from tests.tools.conftest import Said
from tools import benchmark as command
from tools.jobs.benchmarks import others, rows
from tools.jobs.benchmarks.contenders import Comparison, Contender, Measured, alternate, ratio_quartiles
from tools.jobs.benchmarks.equality import equal_detections, partners
from tools.jobs.benchmarks.limit import count_flops, limits, share
from tools.jobs.benchmarks.masks import given_masks, our_rles, their_rles
from tools.jobs.benchmarks.run import as_json, benchmark, set_shares
from tools.jobs.benchmarks.setting import NO_AMX, Setting
from tools.jobs.benchmarks.table import against_best, against_reference, cells_of, markdown

Call = Callable[..., Said]


@pytest.fixture(scope="module")
def quick() -> Setting:
    return Setting(repeats=3, quick=True, scoring_images=10, say=lambda line: None)


def test_file_holds_ratios_of_its_medians_and_what_it_was_measured_on(call: Call, tmp_path: Path) -> None:
    options = ["--quick", "--repeats", 3, "--out", tmp_path / "out", "--rows", "roi_align", "growth_instances"]
    said = call(command, *options)
    assert said.code == 0 and "arithmetic limit" in said.out, said.err
    results = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert results["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert results["command"].startswith("python tools/benchmark.py --quick") and results["limits_flops_per_s"]["fp32"]
    assert {c["row"] for c in results["comparisons"]} == {"roi_align", "growth_instances"}
    for comparison in results["comparisons"]:
        by_name = {contender["name"]: contender for contender in comparison["contenders"]}
        assert len(comparison["ratios"]) == 1
        for contender in by_name.values():
            assert contender["median"] == statistics.median(contender["samples"]) and len(contender["samples"]) == 3
        for pair in comparison["ratios"]:
            expected = by_name[pair["theirs"]]["median"] / by_name[pair["ours"]]["median"]
            assert pair["ratio"] == pytest.approx(expected) and not by_name[pair["theirs"]]["ours"]
    assert (tmp_path / "out" / "growth_instances.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "benchmark.md").read_text() == markdown(results)
    assert "holds a benchmark" in call(command, *options).err
    with pytest.raises(AlreadyExists):
        benchmark(Setting(quick=True), ["masks"], out=tmp_path / "out")


def test_whole_detectors_agree_and_what_cannot_be_measured_is_in_the_table(
    quick: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled here, which takes a minute: `compiled_copy` raises as without a C++ compiler."""
    from heads.inference import CannotCompile
    from tools.jobs.benchmarks import inference

    def raises(*_: Any) -> Any:
        raise CannotCompile("there is no C++ compiler")

    monkeypatch.setattr(inference, "compiled_copy", raises)
    monkeypatch.setattr(others, "installed", lambda package: False)
    monkeypatch.setattr(Setting, "no_bf16", NO_AMX)
    results = benchmark(replace(quick, repeats=1), ["inference", "dense"])
    whole, dense = results["comparisons"]
    reasons = {contender["name"]: contender["missing"] for contender in (*whole["contenders"], *dense["contenders"])}
    assert reasons["detectron2"] == reasons["mayaku"] == reasons["OpenVINO, fp32"] == "not installed"
    assert reasons["for_inference(bf16)"] == reasons["OpenVINO, bf16"].replace("not installed", NO_AMX) == NO_AMX
    assert "no C++ compiler" in reasons["for_inference(compile=True)"]
    text = markdown(results)
    for name, reason in reasons.items():
        assert f"| {name} | {reason}" in text
    found, total = (int(word) for word in whole["equal"][0].split(": ")[1].split(" ")[:3:2])
    assert total > 20 and found >= 0.95 * total
    assert dense["flops"] > 1e9 and whole["flops"] > dense["flops"]
    assert all(c["share_of_limit"] > 0 for c in dense["contenders"] if not c["missing"])


@pytest.mark.parametrize("names", [["infrence"], ["masks", "nothing"]])
def test_unknown_row_is_refused_with_the_known_ones(names: list[str], call: Call) -> None:
    said = call(command, "--quick", "--rows", *names)
    assert said.code == 2 and names[-1] in said.err and all(row in said.err for row in rows.ROWS)


@pytest.mark.parametrize("option", ["--repeats", "--scoring-images"])
def test_numbers_below_one_are_refused(option: str, call: Call) -> None:
    said = call(command, option, 0)
    assert said.code == 2 and f"{option} is 0" in said.err


def test_folder_without_enough_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"holds 0 pictures"):
        _ = Setting(images=tmp_path).pictures


@pytest.mark.parametrize(("m", "k", "n"), [(3, 5, 7), (64, 32, 16)])
def test_operations_of_a_product_are_counted_and_give_its_share_of_the_limit(m: int, k: int, n: int) -> None:
    a, b = torch.randn(m, k), torch.randn(k, n)
    flops = count_flops(lambda: a @ b)
    assert flops == 2 * m * k * n
    assert share(flops, seconds=2.0, limit=float(flops)) == 0.5
    assert share(None, 2.0, 1.0) is None and share(flops, None, 1.0) is None and share(flops, 2.0, None) is None


def test_limit_is_measured_for_bf16_only_where_the_hardware_multiplies_in_it(quick: Setting) -> None:
    found = limits(quick)
    assert found["fp32"] > 0 and ("bf16" in found) == (not quick.no_bf16)


def test_contenders_alternate_and_rounds_are_limited() -> None:
    order: list[str] = []
    contenders = [Contender(name, lambda name=name: order.append(name)) for name in "ab"]  # type: ignore[misc]
    contenders.insert(1, Contender.absent("c", "not installed"))
    comparison = Comparison("row", "title", contenders, max_repeats=3, warm_up=False)
    measured = alternate(comparison, 5, lambda: None)
    assert "".join(order) == "abbaab" and [len(m.samples) for m in measured] == [3, 0, 3]


def test_ratios_compare_equal_precision_and_each_round_with_itself() -> None:
    seconds = {
        "torchvision": [4.0, 4.0, 8.0],
        "bf16 autocast": [1.0] * 3,
        "ours": [2.0, 2.0, 4.0],
        "ours bf16": [0.5] * 3,
    }
    contenders = [
        Contender(n, lambda: None, ours="ours" in n, dtype="bf16" if "bf16" in n else "fp32") for n in seconds
    ]
    measured = [Measured(c, seconds[c.name]) for c in contenders]
    comparison = as_json(Comparison("r", "t", contenders, reference="torchvision", flops=8), measured)
    set_shares({"comparisons": [comparison], "limits_flops_per_s": {"fp32": 8.0}})
    theirs, low, ours, ours_low = comparison["contenders"]
    assert [against_reference(comparison, c) for c in (theirs, low, ours, ours_low)] == [1.0, 4.0, 2.0, 8.0]
    assert (against_best(comparison, ours), against_best(comparison, ours_low)) == (2.0, 2.0)
    assert ours["share_of_limit"] == 0.5 and ours_low["share_of_limit"] is None
    assert ratio_quartiles(measured[0], measured[2]) == (2.0, 2.0)
    assert cells_of(comparison, ours)[:2] == ["ours", "2 s"] and "50 %" in cells_of(comparison, ours)


def test_detections_match_one_to_one() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 10], [5.0, 5, 30, 30]])
    one = Detections(boxes, torch.tensor([0.9, 0.8, 0.31]), torch.tensor([0, 0, 1]))
    moved = Detections(boxes + 0.005, one.scores, one.labels)
    assert equal_detections([one], [moved]) == partners([one], [moved]) == (3, 3)
    twice = Detections(boxes, torch.full((3,), 0.9), torch.tensor([0, 0, 1]))
    assert equal_detections([one], [twice]) == (1, 3)
    far = Detections(boxes + 0.2, one.scores + 0.02, one.labels)
    assert equal_detections([one], [far]) == (0, 3) and partners([one], [far]) == (3, 3)
    assert partners([far[:0]], [one[2:]]) == (0, 1)


def test_masks_of_the_benchmark_are_equal_and_not_trivial() -> None:
    given = *given_masks(20, 120, 90), 120, 90
    assert our_rles(*given) == their_rles(*given)
    assert len({rle["counts"] for rle in our_rles(*given)}) > 15
    assert bool(((given[1][:, 2:] - given[1][:, :2]) > 0).all()) and float(given[1].max()) <= 120


def test_every_row_can_be_started(quick: Setting) -> None:
    for name, row in rows.ROWS.items():
        assert row.what and iter(rows.comparisons(name, quick)) is not None


def test_pictures_of_a_folder_are_taken_by_name(tmp_path: Path) -> None:
    from PIL import Image

    for name, value in (("b.png", 2), ("a.png", 1), ("c.txt", 3)):
        if name.endswith("png"):
            Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(tmp_path / name)
        else:
            (tmp_path / name).write_text("no picture")
    found = Setting(images=tmp_path).pictures
    assert [int(picture[0, 0, 0]) for picture in found] == [1, 2]
