"""Model folders for the tests of c2f-infer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from infer_runs import Models


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> Models:
    """Model folders by kind."""
    kinds: dict[str, dict[str, Any]] = {
        "coarse": {"spacing": (4.0, 2.0, 2.0), "seed": 1},
        "fine": {"seed": 2},
        "coarse2": {"spacing": (4.0, 2.0, 2.0), "seed": 1, "channels": 2},
        "fine2": {"seed": 2, "channels": 2},
        "liver": {"labels": {"background": 0, "liver": 1}},
    }
    return {kind: model_folder(**options) for kind, options in kinds.items()}
