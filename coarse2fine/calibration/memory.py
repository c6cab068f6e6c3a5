"""What was found about cases, left in the work folder, so that a command that was cut short finds it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.io import atomic_write

_ABOUT = "about"
_FORMAT = 1
"""Of everything that is left; what another version of the software left is measured anew."""


def recall(path: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier run left; None if it left nothing whole, or something about other files, models or settings.

    Args:
        path: JSON file.
        about: What it must be about, fit for JSON.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and known.get(_ABOUT) == json.loads(_named(about)) else None


def remember(path: Path, about: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Leave something for a later run.

    Raises:
        OutputError: If it cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({_ABOUT: json.loads(_named(about)), **found}), encoding="utf-8")


def recall_arrays(path: Path, about: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
    """As ``recall``, of arrays.

    Args:
        path: Ends in ``.npz``.
        about: As there.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            if stored[_ABOUT].item() != _named(about):
                return None
            return {name: stored[name] for name in stored.files if name != _ABOUT}
    except Exception:  # a damaged archive fails in many ways, and each has the same remedy
        return None


def remember_arrays(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """As ``remember``, of arrays.

    Raises:
        OutputError: If they cannot be written.
    """
    entries: dict[str, Any] = {_ABOUT: np.array(_named(about)), **arrays}
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **entries)


def _named(about: Mapping[str, Any]) -> str:
    return json.dumps({"format": _FORMAT, **about})
