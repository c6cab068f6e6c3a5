"""What tests of all converters need: nnU-Net's own judgement of a data set."""

from __future__ import annotations

import multiprocessing.dummy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest


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
