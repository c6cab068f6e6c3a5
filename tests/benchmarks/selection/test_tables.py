"""The tables of the page about AssignNet, from made-up results."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import benchmark_module

script = benchmark_module("selection.tables")


def results(*policies: str) -> dict[str, Any]:
    """A row for each policy, set and lambda; figures count upwards so that each is told apart."""
    rows: list[dict[str, Any]] = []
    for name in ("oracle", "all_parents", "all_children", "greedy", "greedy_drop", "top_k", "random", *policies):
        for which in ("case", "trees"):
            for weight in (0.03, 0.05, 0.1275):
                share = len(rows) / 1000
                head = {"policy": name, "set": which, "lambda": weight, "slots": 10 * share}
                rows.append(head | {"oracle_fraction": share, "reward": share, "quality": share})
    order = [{"packing": "same_size", "norm": "case", "order": name, "iou": 0.5} for name in ("agent", "space")]
    return {"metric": "iou", "lambdas": [0.03, 0.05, 0.1275], "rows": rows, "order": order}


def cells(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_oracle_shares__several_seeds__shows_mean_and_range(script: ModuleType) -> None:
    """Seeds of a kind share a line; ablations are not among them."""
    made = results("gains-seed0", "gains-seed1", "policy-network-seed0")
    text = script.oracle_shares(made)
    first, second = (script.values(made, [f"gains-seed{n}"], "trees", "oracle_fraction", 0.05)[0] for n in (0, 1))
    assert cells(text, "gains, 2 seed(s)")[1] == f"{(first + second) / 2:.3f} ({first:.2f} to {second:.2f})"
    assert "policy" not in text
    assert len(text.splitlines()) == 2 + 6 + 1


def test_whole_case_and_ablations__made_up__take_the_right_rows(script: ModuleType) -> None:
    """Quality and slots are the case's, rewards the trees', and what was not trained has no line."""
    made = results("policy-seed0", "policy-network-seed0")
    expected = script.values(made, ["oracle"], "case", "quality", 0.03)[0]
    assert cells(script.whole_case(made), "oracle")[0] == f"{expected:.3f} / {10 * expected:.1f}"
    text = script.ablations(made)
    assert (
        cells(text, "with the coarse")[2]
        == f"{script.values(made, ['policy-network-seed0'], 'trees', 'reward', 0.1275)[0]:.3f}"
    )
    assert "start_label" not in text
    assert cells(script.orders(made), "same_size, norm: case") == ["0.500", "0.500"]


def test_main__results_missing__says_which(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All three data sets are needed; with them all tables are printed."""
    (tmp_path / "em.json").write_text(json.dumps(results("gains-seed0")))
    assert script.main(["--results", str(tmp_path)]) == 1
    assert "no results synthetic.json" in capsys.readouterr().err
    for name in ("synthetic", "lung"):
        (tmp_path / f"{name}.json").write_text(json.dumps(results()))
    assert script.main(["--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("| lambda |") == 3
