"""Checksums of labels, on a tiny data set with tiny models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
from conftest import benchmark_module, blobs, import_benchmark
from raw_data import save_case

from coarse2fine.cli import infer

script = benchmark_module("labels_of")


@pytest.mark.long
def test_main__tiny_data_set__prints_the_checksums_of_what_c2f_infer_writes(
    script: ModuleType,
    model_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In each mode those of the file's voxels, as nibabel reads them; one voxel more is another checksum."""
    voxels = blobs((12, 40, 36))
    save_case(tmp_path, "Ts", "a", voxels, voxels > 130)
    models = {"coarse": str(model_folder(spacing=(4.0, 2.0, 2.0), seed=3)), "fine": str(model_folder(seed=6))}
    changes = {"config": None, "data": str(tmp_path), "models": models}
    dataset = import_benchmark("common.registry").load_dataset("em").model_copy(update=changes)
    monkeypatch.setattr(script, "load_dataset", lambda name: dataset)
    assert script.main(["tiny"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]

    expected, words = [], ["--coarse-model", models["coarse"], "--fine-model", models["fine"], "--device", "cpu"]
    for mode in ("accelerated", "two-stage"):
        output = tmp_path / f"{mode}.nii.gz"
        files = ["-i", str(tmp_path / "imagesTs" / "a_0000.nii.gz"), "-o", str(output)]
        assert infer.main([*files, *words, "--mode", mode, "--set", "fine.mirroring=false"]) == 0
        labels = np.asarray(nibabel.load(output).dataobj)
        expected.append(["tiny", mode, hashlib.sha256(labels.tobytes()).hexdigest()])
    assert printed == expected
    assert expected[0][2] != expected[1][2]
    labels[0, 0, 0] += 1
    assert script.checksum(labels.T) not in {found for *_, found in expected}


def test_main__data_that_are_not_here__are_told_and_the_rest_goes_on(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is that of all scripts where something is missing; a wrong name gets the likely one."""
    monkeypatch.setattr(script, "choose_case", partial(script.choose_case, data=tmp_path))
    assert script.main(["em", "word"]) == 2
    said = capsys.readouterr().err
    assert "no test case of 'em'" in said
    assert "no test case of 'word'" in said
    assert script.main(["emm"]) == 1
    assert "did you mean 'em'?" in capsys.readouterr().err.lower()
