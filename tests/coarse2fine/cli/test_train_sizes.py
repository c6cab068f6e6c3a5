"""Trees that are too large for a policy to learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from assignnet.learn.train import TrainSettings, train_agent
from assignnet.value.synthetic import synthetic_instance
from coarse2fine.cli.train_run import check_instances
from coarse2fine.errors import C2FError

CASES = Path("raw")


def test_check_instances__all_trees_too_large__gains_learn_from_them_as_the_message_says(tmp_path: Path) -> None:
    """By default a policy learns from trees of up to 64 regions."""
    random = np.random.default_rng(0)
    learn, held = ([synthetic_instance(random, 70, features=3)] for _ in range(2))
    policy, gains = (TrainSettings(kind=kind, steps=1) for kind in ("policy", "gains"))
    with pytest.raises(C2FError, match="raw: 1 of 1 instances to learn from have more than 64 regions, too") as caught:
        check_instances(CASES, learn, held, policy, Console(stderr=True))
    assert caught.value.remedy.startswith("Use --kind gains")
    check_instances(CASES, learn, held, gains, Console(stderr=True))
    assert train_agent(learn, held, gains, tmp_path, features={}, about={}).card.kind == "gains"


@pytest.mark.parametrize(("kind", "most", "left_out"), [("policy", 7, 1), ("policy", 70, 0), ("gains", 7, 0)])
def test_check_instances__some_trees_too_large__are_counted(
    kind: str, most: int, left_out: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """A policy learns from the others; that is no news where all are small enough."""
    random = np.random.default_rng(0)
    learn = [synthetic_instance(random, regions, features=3) for regions in (7, 70, 5)]
    check_instances(CASES, learn, learn, TrainSettings(kind=kind, most=most), Console(stderr=True))
    said = capfd.readouterr().err
    assert said.startswith(f"1 of 3 instances to learn from have more than {most} regions, too many") == bool(left_out)
    assert bool(said) == bool(left_out)
