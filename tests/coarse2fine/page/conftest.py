"""A model for the tests of pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pages import EVIL

from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model


@pytest.fixture(scope="session")
def model(model_folder: Callable[..., Path]) -> Model:
    """A model with two labels, one of which has a name from a stranger."""
    return load_model(model_folder(labels={"background": 0, "lesion": 1, EVIL: 2}))
