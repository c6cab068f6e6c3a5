"""Windows and macOS, as far as a machine without them shows: what they lack is taken away from a process.

Packages of others are imported before, as they have ways of their own around it. Apple's GPUs have no double precision
and refuse tensors of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import blobs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from coarse2fine.config.reader import load_config
from coarse2fine.io import Grid, Volume
from coarse2fine.pipeline import Pipeline
from coarse2fine.system import device

WITHOUT = """
import os, signal, sys
import coarse2fine.cli.infer_run, coarse2fine.cli.convert_run, coarse2fine.cli.predict_run, coarse2fine.cli.prepare_run
import coarse2fine.cli.train_run, tensorboard, distributed
from coarse2fine.cli.infer import main
modules, names, signals = sys.argv[1].split(), sys.argv[2].split(), sys.argv[3].split()
for name in [name for name in sys.modules if name.partition(".")[0] in ("coarse2fine", "assignnet", "canvas")]:
    del sys.modules[name]
for name in modules:
    sys.modules[name] = None  # to import it is an ImportError from now on
for name in names:
    vars(os).pop(name, None)
for name in signals:
    vars(signal).pop(name, None)
from coarse2fine.system import memory
memory.peak_bytes = lambda: 1 << 30  # on Windows psutil tells, which does not here
import coarse2fine.cli.infer_run, coarse2fine.cli.convert_run, coarse2fine.cli.predict_run, coarse2fine.cli.prepare_run
import coarse2fine.cli.train_run
from coarse2fine.cli.infer import main
sys.exit(main(sys.argv[4:]))
"""
MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog", "crypt", "posix")
NAMES = (
    "geteuid getuid getegid getgid getpgid getsid setsid fork forkpty killpg nice sysconf pread pwrite fchmod fchown "
    "chown lchown mkfifo mknod sched_getaffinity statvfs fstatvfs uname wait3 wait4 sync "
    "O_NOFOLLOW O_DIRECTORY O_NONBLOCK O_CLOEXEC O_SYNC"
)
SIGNALS = "SIGHUP SIGKILL SIGUSR1 SIGUSR2 SIGALRM SIGPIPE SIGCHLD SIGQUIT pthread_sigmask sigwait alarm pause"


def run_without(*arguments: object, modules: str = " ".join(MODULES)) -> subprocess.CompletedProcess[str]:
    """c2f-infer in a process that has none of what Windows lacks."""
    command = [sys.executable, "-c", WITHOUT, modules, NAMES, SIGNALS, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})


@pytest.mark.long
def test_main__without_what_windows_lacks__segments_files_and_refuses_stores(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """All commands can be imported; labels are those of this system; a store is refused with what works."""
    models = ["--coarse-model", model_folder(spacing=(4.0, 2.0, 2.0), seed=1), "--fine-model", model_folder(seed=2)]
    sitk.WriteImage(sitk.GetImageFromArray(blobs((12, 28, 30))), str(tmp_path / "a.nii.gz"))
    options = ["--device", "cpu", "--report", tmp_path / "r.json", "--overwrite", *models]
    done = run_without("-i", tmp_path / "a.nii.gz", "-o", tmp_path / "b.nii.gz", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    from coarse2fine.cli.infer import main

    here = ["-i", tmp_path / "a.nii.gz", "-o", tmp_path / "c.nii.gz", *options]
    assert main([str(word) for word in here]) == 0
    there, expected = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{name}.nii.gz"))) for name in "bc")
    np.testing.assert_array_equal(there, expected)
    assert expected.any()

    import zarr

    store = zarr.create_array(str(tmp_path / "a.zarr"), shape=(12, 28, 30), chunks=(12, 28, 30), dtype="i2")
    store[:] = blobs((12, 28, 30))
    stored = ["--spacing", "2,1,1", "--unit", "mm", *options[:2], *models]
    done = run_without("-i", tmp_path / "a.zarr", "-o", tmp_path / "b.zarr", *stored)
    assert done.returncode == 1
    assert "volumes that are read by region are segmented on Linux and macOS only" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "b.zarr").exists()
    done = run_without("-i", tmp_path / "a.zarr", "-o", tmp_path / "b.zarr", "--version", modules="numpy")
    assert done.returncode != 0, "what is taken away is missed"


class Doubles(TorchDispatchMode):
    """Notes the operations that take or give a tensor of doubles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.operations = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.operations += 1
        for value in tree_flatten((args, kwargs, result))[0]:
            if isinstance(value, torch.Tensor) and value.dtype in (torch.float64, torch.complex128):
                self.found.add(str(operation))
        return result


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["mode=one-stage"],
        *(
            pytest.param(one, marks=pytest.mark.long)
            for one in (["mode=two-stage"], ["canvas.norm=slot"], ["canvas.norm=canvas", "fine.outside=coarse"])
        ),
    ],
)
def test_run__any_mode__gives_pytorch_no_doubles(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    """Also of a volume of doubles, uploaded as for Apple's GPUs; weights of tiles are nnU-Net's own, made before."""
    made_for, apple = device.readable, torch.device("mps")
    monkeypatch.setattr(device, "readable", lambda array, _: made_for(array, apple))
    models = [f"coarse.model={model_folder(spacing=(4.0, 2.0, 2.0), seed=1)}", f"fine.model={model_folder(seed=2)}"]
    common = ["device=cpu", "rois.threshold=0.55", "fine.mirroring=false", "coarse.mirroring=false"]
    pipeline = Pipeline.from_config(load_config(None, [*models, *common, *settings]))
    image = blobs((12, 28, 30)).astype(np.float64)
    volume = Volume((image,), Grid(image.shape, (2.0, 1.0, 1.0)), "case")
    expected = pipeline(volume).labels
    with Doubles() as watch:
        found = pipeline(volume).labels
        assert not watch.found
        assert watch.operations > 100
        torch.zeros(2, dtype=torch.float64) + 1
    assert watch.found, "doubles are seen where there are any"
    np.testing.assert_array_equal(found, expected)
    assert found.any()
