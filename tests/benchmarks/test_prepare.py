"""What a kit is worth on test cases."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import benchmark_module
from scipy import stats

from coarse2fine.config.schema import Config, KnownConfig, PromiseConfig

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

    assert found["ratio"] == 10.0
    assert found["tuned_ratio"] == 20.0
    assert found["loss"] == pytest.approx(0.04)
    assert found["loss_interval"] == pytest.approx(prepare.interval(np.array([0.0, 0.1, 0.02]).tolist()))
    assert found["kept"] == 2
    assert found["missed"] == {"a": 0.01, "b": 0.02, "c": 0.0}
    assert (found["promised_share"], found["promised_probability"], found["promise_is_estimate"]) == (0.01, 0.8, True)
