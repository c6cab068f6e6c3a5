"""What a kit is worth on test cases."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import benchmark_module, import_benchmark
from raw_data import save_case
from scipy import stats

from coarse2fine.config.schema import Config, KnownConfig, PromiseConfig
from coarse2fine.io import read_volume

prepare = benchmark_module("prepare")


def test_interval__some_losses__is_scipys(prepare: ModuleType) -> None:
    """Student's, two-sided; one case has none."""
    losses = [0.01, -0.02, 0.03, 0.0]
    expected = stats.ttest_1samp(losses, 0.0).confidence_interval(0.95)
    assert prepare.interval(losses) == pytest.approx([expected.low, expected.high])
    assert prepare.interval([0.1]) is None


def row(case: str, missed: float, lost: float) -> dict[str, Any]:
    return {
        "case": case,
        "missed": missed,
        "nnunet": {"seconds": 30.0},
        "kit": {"seconds": 2.0, "dice": 0.8 - lost},
        "one_stage": {"seconds": 20.0, "dice": 0.8},
        "tuned": {"seconds": 1.0, "dice": 0.8},
    }


def test_summary__some_rows__counts_kept_promises(prepare: ModuleType) -> None:
    """Ratios are those of medians, losses are paired, and a promise is kept up to the share that it names."""
    known = KnownConfig(spacing=((1, 1),) * 3, low=((0, 0),), high=((1, 1),), mass=(0, 1))
    promise = PromiseConfig(
        miss=0.01,
        probability=0.8,
        cases=4,
        rank=1,
        foreground="labels",
        crossed=True,
        settings="",
        coarse_model="",
        fine_model="",
        known=known,
    )
    kit = SimpleNamespace(config=Config(promise=promise))
    rows = [row("a", 0.01, 0.0), row("b", 0.02, 0.1), row("c", 0.0, 0.02)]

    found = prepare.summary(
        rows, {"minutes": 12.5, "resumed": False, "coarse": "trained", "asked": {"loss": 0.005}}, kit
    )

    assert found["ratio"] == 15.0
    assert found["one_stage_ratio"] == 1.5
    assert found["tuned_ratio"] == 30.0
    assert found["loss"] == pytest.approx(0.04)
    assert found["loss_interval"] == pytest.approx(prepare.interval(np.array([0.0, 0.1, 0.02]).tolist()))
    assert found["kept"] == 2
    assert found["missed"] == {"a": 0.01, "b": 0.02, "c": 0.0}
    assert (found["promised_share"], found["promised_probability"], found["promise_is_estimate"]) == (0.01, 0.8, True)


MERGED = {"pair": (2, 5)}
LABELS = np.zeros((4, 8, 8), np.uint8)
LABELS[1, 1:4, 1:4], LABELS[2, 5, 5], LABELS[3, 2:6, 2:6] = 2, 5, 1


def test_make_kit__merged_labels__the_kit_is_made_of_these(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """c2f-prepare is typed with a folder of the merged labels; of a data set without any with its own."""
    save_case(tmp_path / "data", "Tr", "a", LABELS.astype(np.float32), LABELS)
    (tmp_path / "data" / "dataset.json").write_text('{"labels": {"background": 0}}')
    dataset = import_benchmark("common.registry").load_dataset("brain_tiny")
    dataset = dataset.model_copy(update={"data": str(tmp_path / "data"), "merged": MERGED})
    typed: list[list[str]] = []
    monkeypatch.setattr(prepare, "find_model", lambda dataset, role: tmp_path / role)
    monkeypatch.setattr(
        prepare.subprocess, "run", lambda command, check: typed.append(command) or SimpleNamespace(returncode=0)
    )
    for merged in (MERGED, {}):
        prepare.make_kit(dataset.model_copy(update={"merged": merged}), tmp_path / "kit", 1, [])
    own, plain = (Path(command[command.index("--cases") + 1]) for command in typed)
    found = read_volume([own / "labelsTr" / "a.nii.gz"]).channels[0]
    assert np.array_equal(found, np.isin(LABELS, MERGED["pair"]))
    assert plain == tmp_path / "data"


def test_measure__merged_labels__are_the_truth(prepare: ModuleType, tmp_path: Path) -> None:
    """Whoever finds exactly the merged labels has a Dice of 1, and whoever finds those of the file has not."""
    save_case(tmp_path, "Ts", "a", LABELS.astype(np.float32), LABELS)
    case = SimpleNamespace(
        name="a", image=tmp_path / "imagesTs" / "a_0000.nii.gz", reference=tmp_path / "labelsTs" / "a.nii.gz"
    )
    fine = SimpleNamespace(labels=SimpleNamespace(ignore=None, foreground=(1,)))

    def finder(labels: np.ndarray) -> Any:
        result = SimpleNamespace(labels=labels, report=SimpleNamespace(warnings=()))
        return type("Finder", (), {"run_files": lambda *_: result, "fine": fine, "segmenter": None})()

    merged = np.isin(LABELS, MERGED["pair"]).astype(np.uint8)
    bench = SimpleNamespace(dataset=SimpleNamespace(merged=MERGED))
    who = prepare.Contestants(finder(merged), finder(LABELS), None, bench)
    row = prepare.measure(case, who, 1, False)
    assert row["kit"]["dice"] == 1
    assert row["one_stage"]["dice"] == 0
