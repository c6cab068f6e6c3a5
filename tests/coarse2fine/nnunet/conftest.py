"""A model folder to damage, for the tests of what strangers may send."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from model_edits import SPARE, USED, edit_json, get, put


@pytest.fixture(scope="module")
def pristine(model_folder: Callable[..., Path]) -> Path:
    """A model folder that works, with a second configuration in its plans; not to be changed."""
    folder = model_folder(labels={"background": 0, "a": 1, "b": 2})
    edit_json(folder / "plans.json", lambda plans: put(plans, SPARE, copy.deepcopy(get(plans, USED))))
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(pristine, tmp_path / "model")
