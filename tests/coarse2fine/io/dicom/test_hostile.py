"""DICOM series from strangers."""

from __future__ import annotations

from pathlib import Path

from dicom_fuzzing import make_dicom
from fuzzing import outcomes

SEEDS = 40  # `make fuzz` tries more


def test_read_volume__damaged_series__is_read_or_refused(tmp_path: Path) -> None:
    """Whatever is in their fields or bytes: one clear error, or a volume; no traceback, no crash, nothing endless."""
    paths = [make_dicom(seed, tmp_path) for seed in range(SEEDS)]
    found = outcomes("dicom_fuzzing:ours", paths)
    faults = {path.name: one for path, one in zip(paths, found, strict=True) if one.kind not in ("read", "refused")}
    assert not faults
    assert {one.kind for one in found} == {"read", "refused"}
    assert all(len(one.detail) < 1500 for one in found)
