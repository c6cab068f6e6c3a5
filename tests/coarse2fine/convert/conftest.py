"""What tests of several converters need: published layouts, and nnU-Net's own judgement of a data set."""

from __future__ import annotations

import multiprocessing.dummy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ct_cases import covid_case, ct, mask, save


@pytest.fixture
def nnunet_verify(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """nnU-Net's own check of a data set, in threads: its processes would take seconds to start."""

    def verify_folder(folder: Path) -> None:
        for name in ("raw", "preprocessed", "results"):
            monkeypatch.setenv(f"nnUNet_{name}", str(folder.parent))
        from nnunetv2.experiment_planning import verify_dataset_integrity as verify
        from nnunetv2.utilities import utils

        threads = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
        monkeypatch.setattr(verify, "multiprocessing", threads)
        monkeypatch.setattr(utils, "Pool", multiprocessing.dummy.Pool)
        verify.verify_dataset_integrity(str(folder), 1)

    return verify_folder


@pytest.fixture
def covid(tmp_path: Path) -> Path:
    """Two training cases and a validation image, as in COVID-19-20_v2."""
    for number, seed in (("0003", 1), ("0011", 2)):
        covid_case(tmp_path / "covid/Train", number, seed)
    save(tmp_path / "covid/Validation/volume-covid19-A-0698_ct.nii.gz", ct(3))
    (tmp_path / "covid/Train/._volume-covid19-A-0003_ct.nii.gz").write_bytes(b"what macOS leaves behind")
    return tmp_path / "covid"


@pytest.fixture
def word(tmp_path: Path) -> Path:
    """One case in each split of WORD."""
    for seed, (split, number) in enumerate((("Tr", "0002"), ("Val", "0001"), ("Ts", "0014"))):
        save(tmp_path / f"WORD/images{split}/word_{number}.nii.gz", ct(seed))
        save(tmp_path / f"WORD/labels{split}/word_{number}.nii.gz", mask(seed, 16).astype(np.uint8))
    return tmp_path / "WORD"
