"""Model folders from strangers: none runs code, neither from checkpoints nor from plans."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_edits import CHECKPOINT, NETWORK, SPARE, USED, edit_checkpoint, edit_pickle, follow, set_key
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from coarse2fine.errors import UntrustedModelError
from coarse2fine.nnunet.loading import load_model


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


PAYLOADS: dict[str, Callable[[Path], object]] = {
    "os.system": lambda canary: Runs(os.system, f"touch '{canary}'"),
    "open": lambda canary: Runs(exec, f"open({str(canary)!r}, 'w').write('sung')"),
    "object array": lambda canary: np.array([Runs(os.system, f"touch '{canary}'")], object),
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize(
    "options",
    [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}],
    ids=["zip", "legacy", "protocol 4"],
)
def test_load_model__checkpoint_that_runs_code__is_refused_unrun(
    folder: Path, tmp_path: Path, payload: str, options: dict[str, Any]
) -> None:
    """Code in a checkpoint runs under full pickle and with ``trust``, and never without."""
    canary = tmp_path / "canary"
    edit_checkpoint(folder, lambda content: content["logging"].update(bomb=PAYLOADS[payload](canary)), **options)

    torch.load(folder / CHECKPOINT, weights_only=False)
    assert canary.exists()
    canary.unlink()

    with pytest.raises(UntrustedModelError, match="--trust-checkpoint") as caught:
        load_model(folder)
    assert str(folder / CHECKPOINT) in caught.value.problem
    assert not canary.exists()

    load_model(folder, trust=True)
    assert canary.exists()


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_load_model__numpy_scalars_in_the_training_log__are_skipped(folder: Path, module: str) -> None:
    """What nnU-Net's trainers write under NumPy 1 and 2 loads, although PyTorch's own allowlist refuses it."""
    scalars = [np.float64(1), np.float32(2), np.uint8(3), np.bool_(True), np.str_("x"), np.datetime64("2026-01-01")]
    edit_checkpoint(folder, lambda content: content["logging"].update(scalars=scalars))
    expected = load_model(folder)
    old, new = (f"c{name}\nscalar\n".encode() for name in (np.float64(0).__reduce__()[0].__module__, module))
    edit_pickle(folder / CHECKPOINT, lambda content: content.replace(old, new))

    with zipfile.ZipFile(folder / CHECKPOINT) as archive:
        assert new in archive.read("checkpoint_final/data.pkl")
    with pytest.raises(pickle.UnpicklingError, match="scalar"):
        torch.load(folder / CHECKPOINT, weights_only=True)
    image = torch.rand(1, 1, 8, 16, 16)
    model = load_model(folder)
    assert model.mirror_axes == (0, 1, 2)
    assert torch.equal(model.forward(image, mirroring=False), expected.forward(image, mirroring=False))


IMPORTED = {  # nnU-Net imports what these name, and with it runs any file that Python finds under that name
    "architecture.network_class_name": "canary_module.Network",
    "architecture.arch_kwargs.nonlin": "canary_module.Layer",
    "architecture.arch_kwargs.conv_op": "canary_module.Layer",
    "architecture.arch_kwargs.norm_op": "canary_module.Layer",
    "architecture.arch_kwargs.dropout_op": "canary_module.Layer",
}
NAMES = {
    "architecture.network_class_name": [
        "os.system",
        f"{NETWORK}.torch",
        f"{NETWORK}.AbstractDynamicNetworkArchitectures",
        "PlainConvUNet",
        "canary_module.PlainConvUNet",
        [f"{NETWORK}.PlainConvUNet"],
        None,
    ],
    "architecture._kw_requires_import": [["conv_op", "kernel_sizes"], "conv_op", None, [["conv_op"]], {"conv_op": 1}],
    "architecture.arch_kwargs.nonlin": ["os.system", "torch.nn.Module", "torch.hub.load", ["torch.nn.ReLU"], 1],
    "preprocessor_name": ["Evil", ["DefaultPreprocessor"], None],
    "resampling_fn_data": ["system", {"name": "no_resampling_hack"}],
    "resampling_fn_probabilities": ["system"],
    "normalization_schemes": [["ZScoreNormalization", "Evil"], "ZScoreNormalization", [["ZScoreNormalization"]]],
}
HOSTILE = [
    *((f"{USED}.{key}", value) for key, values in NAMES.items() for value in values),
    *((f"{SPARE}.{key}", values[0]) for key, values in NAMES.items()),
    ("label_manager", "Evil"),
    ("label_manager", {"LabelManager": 1}),
    ("image_reader_writer", "Evil"),
]


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears when ``canary_module``, which Python can find, is imported."""
    path = tmp_path / "canary"
    (tmp_path / "canary_module.py").write_text(f"open({str(path)!r}, 'w').write('sung')")
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("canary_module", None)


def build_with_nnunet(folder: Path) -> None:
    """What nnU-Net does to build a network; its errors do not matter, only what it ran on the way."""
    plans = PlansManager(json.loads((folder / "plans.json").read_text()))
    configuration = plans.get_configuration("3d_fullres")
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            1,
            3,
        )


@pytest.mark.parametrize("inherited", [False, True], ids=["direct", "inherited"])
@pytest.mark.parametrize("key", [*IMPORTED, "shell", "extra"])
def test_load_model__plans_that_run_code__are_refused_unrun(
    folder: Path, pristine: Path, canary: Path, key: str, inherited: bool
) -> None:
    """Values in plans with which nnU-Net runs code are refused by name, also when they are inherited."""
    section = SPARE if inherited else USED
    changes = {key: IMPORTED.get(key)}
    if key == "shell":  # the layer is the shell, and its options are the command
        key = "architecture.arch_kwargs.nonlin"
        changes = {key: "os.system", f"{key}_kwargs": {"command": f"touch '{canary}'"}}
    if key == "extra":  # another argument is declared to be a name to import
        key = "architecture._kw_requires_import"
        changes = {key: ["conv_op", "extra"], "architecture.arch_kwargs.extra": "canary_module.Layer"}
    for name, value in changes.items():
        set_key("plans.json", f"{section}.{name}", value)(folder)
    if inherited:
        set_key("plans.json", USED, {"inherits_from": "spare"})(folder)

    build_with_nnunet(folder)
    assert canary.exists()
    canary.unlink()
    sys.modules.pop("canary_module", None)

    with pytest.raises(UntrustedModelError) as caught:
        load_model(folder)
    assert f"{section}.{key} is {changes[key]!r}" in caught.value.problem
    load_model(folder, **follow(caught.value.remedy, folder, pristine))
    assert not canary.exists()


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_load_model__unknown_name_in_plans__is_refused_by_key_and_value(
    folder: Path, pristine: Path, key: str, value: object
) -> None:
    """Whatever nnU-Net would look up by name must be on a list, also where this run would not use it."""
    set_key("plans.json", key, value)(folder)
    with pytest.raises(UntrustedModelError) as caught:
        load_model(folder)
    assert f"{folder / 'plans.json'}: {key} is {value!r}" in caught.value.problem
    if key != "image_reader_writer":  # another test follows that remedy
        load_model(folder, **follow(caught.value.remedy, folder, pristine))
