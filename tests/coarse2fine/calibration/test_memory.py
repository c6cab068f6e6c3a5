"""What is left for a later run: found again if it is whole and about the same, and at no other time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coarse2fine.calibration import memory
from coarse2fine.calibration.memory import recall, recall_arrays, remember, remember_arrays

ABOUT = {"files": [["a.nii", 3, 5]], "settings": (1.5, 1.0, 1.0)}
ARRAYS = {"logits": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "seconds": np.array(1.25)}


def test_recall__same_or_another_subject__is_what_was_left_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tuples are lists in JSON, and equal; what another version left does not count."""
    texts, arrays = tmp_path / "a.json", tmp_path / "a.npz"
    assert recall(texts, ABOUT) is recall_arrays(arrays, ABOUT) is None
    remember(texts, ABOUT, {"case": {"share": 0.1 + 0.2}})
    remember_arrays(arrays, ABOUT, ARRAYS)
    for _ in range(2):
        assert (recall(texts, ABOUT) or {})["case"] == {"share": 0.1 + 0.2}
        known = recall_arrays(arrays, ABOUT)
        assert known is not None
        assert known.keys() == ARRAYS.keys()
        assert all((known[name] == ARRAYS[name]).all() and known[name].dtype == ARRAYS[name].dtype for name in known)
    for other in ({**ABOUT, "files": []}, {**ABOUT, "more": 1}):
        assert recall(texts, other) is recall_arrays(arrays, other) is None
    monkeypatch.setattr(memory, "_FORMAT", 2)
    assert recall(texts, ABOUT) is recall_arrays(arrays, ABOUT) is None


def test_recall__damaged_file__is_nothing_and_can_be_left_again(tmp_path: Path) -> None:
    """Cut off anywhere, or with any byte changed, it is measured anew, or else is whole all the same."""
    texts, arrays = tmp_path / "a.json", tmp_path / "a.npz"
    remember(texts, ABOUT, {"case": None})
    remember_arrays(arrays, ABOUT, ARRAYS)
    for path in (texts, arrays):
        whole = path.read_bytes()
        for at in range(0, len(whole), 23):
            for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
                path.write_bytes(damaged)
                known = recall_arrays(arrays, ABOUT) if path == arrays else recall(texts, ABOUT)
                if known is not None and path == arrays:
                    assert all((known[name] == ARRAYS[name]).all() for name in known)
    remember_arrays(arrays, ABOUT, ARRAYS)
    assert recall_arrays(arrays, ABOUT) is not None
