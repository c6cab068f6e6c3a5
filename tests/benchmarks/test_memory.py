"""The benchmark of memory, on a small image with tiny models: real processes, real peaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk
from conftest import benchmark_module, blobs

script = benchmark_module("memory")


@pytest.mark.alone
def test_main__two_sizes__measures_each_in_its_own_process(
    script: object, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Voxels and bytes are those of the repeated image; a limit of nothing fails."""
    image = sitk.GetImageFromArray((1000 * blobs((12, 64, 64))).astype("int16"))
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    folders = {"--coarse-model": model_folder(spacing=(4.0, 4.0, 4.0), seed=5), "--fine-model": model_folder(seed=6)}
    words = [str(word) for pair in folders.items() for word in pair]
    words += ["--image", str(tmp_path / "scan.nii.gz"), "--out", str(tmp_path / "out.json"), "--threads", "1"]
    words += ["--set", "rois.threshold=0.999", "--mvoxels", "0.02", "4"]
    assert script.main(words) == 0  # type: ignore[attr-defined]
    small, large = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert small["mvoxels"] == pytest.approx(0.02, rel=0.05)
    assert large["mvoxels"] == pytest.approx(4, rel=0.01)
    for row in (small, large):
        assert (row["volume_mb"], row["labels_mb"]) == pytest.approx((2 * row["mvoxels"], row["mvoxels"]), abs=0.06)
        assert row["beyond_mb"] == pytest.approx(row["peak_mb"] - row["volume_mb"] - row["labels_mb"], abs=0.2)
    assert large["peak_mb"] > large["volume_mb"] + large["labels_mb"]
