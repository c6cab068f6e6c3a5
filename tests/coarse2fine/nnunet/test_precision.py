"""Networks in bfloat16 beside the same in single precision, and who may use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import blobs
from torch import nn

from coarse2fine.config.reader import load_config
from coarse2fine.errors import ConfigError
from coarse2fine.io import Grid, Volume
from coarse2fine.nnunet import precision
from coarse2fine.nnunet.cpu_layers import lean
from coarse2fine.nnunet.instance_norm import measure_statistics, with_frozen_statistics
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.precision import in_precision
from coarse2fine.pipeline import Pipeline


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., Path]) -> Model:
    return load_model(model_folder())


@pytest.fixture
def has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes in bfloat16, or imitates it: results do not depend on which."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})


def batch(model: Model) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(1, 1, *model.patch) * 3 + 1


@pytest.mark.usefixtures("has_it")
@pytest.mark.parametrize("kind", ["plain", "lean", "frozen"])
def test_in_precision__bf16__rounds_every_layer_and_gives_single_precision(kind: str, model: Model) -> None:
    """Outputs are near those of single precision, and not nearer than eight bits allow."""
    half, inputs = in_precision(model, "bf16"), batch(model)
    statistics = measure_statistics(half, [inputs[0]])
    for one, other in zip(statistics.layers[0], measure_statistics(model, [inputs[0]]).layers[0], strict=True):
        assert (one == other).all()  # these are measured in single precision

    def run(which: Model) -> torch.Tensor:
        made = {"plain": lambda: which, "lean": lambda: lean(which)}.get(
            kind, lambda: with_frozen_statistics(which, statistics)
        )()
        return made.forward(inputs, mirroring=True).float()

    exact, rounded = run(model), run(half)
    spread = float(exact.std())
    assert 1e-4 * spread < float((rounded - exact).abs().mean()) < 0.03 * spread


@pytest.mark.usefixtures("has_it")
@pytest.mark.parametrize("spoilt", [False, True], ids=["kept", "lost"])
def test_in_precision__auto__is_bfloat16_only_where_labels_stay(
    spoilt: bool, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found on the first input that shows foreground holds for the model from then on."""
    monkeypatch.setattr(precision, "LEAST_AGREEMENT", 0.8)  # random weights are unsure of many voxels
    tried, inputs = in_precision(model, "auto"), batch(model)
    ready = lean(tried)
    network = ready.networks[0]
    if spoilt:
        network.rounded = nn.Sequential(network.rounded, Noise())
    empty = nn.Sequential(network.single, Background())
    network.single, whole = empty, network.single
    network.rounded, rounded = nn.Sequential(network.rounded, Background()), network.rounded
    ready.forward(inputs, mirroring=False)
    assert tried.trial is not None
    assert tried.trial.passed is None  # nothing was found, so nothing is known
    network.single, network.rounded = whole, rounded
    outputs = ready.forward(inputs, mirroring=False)
    assert tried.trial.passed is not spoilt
    assert torch.equal(outputs, lean(model).forward(inputs, mirroring=False)) == spoilt
    assert lean(tried).trial is tried.trial


class Noise(nn.Module):
    """Outputs that say something else."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.flip(1)


class Background(nn.Module):
    """Outputs that find nothing."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits[:, :1] * 0 + 9, logits[:, 1:] * 0], 1)


def test_in_precision__not_there_or_not_wanted__stays_single(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other processors and devices, and where the result is to be nnU-Net's; bf16 by name is refused there."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512": True, "amx_bf16": False})
    assert in_precision(model, "auto") is model
    with pytest.raises(ConfigError, match="bf16") as caught:
        in_precision(model, "bf16")
    assert "fine.precision: auto or fp32" in caught.value.remedy
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert in_precision(model, "auto", exact=True) is model
    assert in_precision(dataclasses.replace(model, device=torch.device("meta")), "auto").trial is None
    assert in_precision(model, "fp32") is model


@pytest.mark.usefixtures("has_it")
def test_pipeline__auto__chooses_for_each_volume_anew(model_folder: Callable[..., Path]) -> None:
    """A volume's labels are the same whichever came before it."""
    folder = model_folder()
    shape = (12, 28, 30)
    stages = [f"coarse.model={folder}", f"fine.model={folder}", "device=cpu", "rois.threshold=0.05"]
    pipeline = Pipeline.from_config(load_config(None, [*stages, "fine.precision=auto"]))
    volume = Volume((blobs(shape),), Grid(shape, (1.0, 1.0, 1.0)), "a")
    assert pipeline.fine.trial is not None
    chosen = set()
    for before in (None, True, False):
        pipeline.fine.trial.passed = before
        chosen.add(pipeline(volume).report.precision)
    assert len(chosen) == 1


@pytest.mark.usefixtures("has_it")
def test_pipeline__precision_setting__reaches_the_network_and_the_report(model_folder: Callable[..., Path]) -> None:
    """Settings, network and report agree; one-stage mode takes auto for single precision."""
    folder = model_folder()
    volume = Volume(name="a", channels=(blobs((12, 28, 30)),), grid=Grid((12, 28, 30), (1.0, 1.0, 1.0)))
    stages = [f"coarse.model={folder}", f"fine.model={folder}", "device=cpu", "rois.threshold=0.05"]
    for setting, mode, used in (
        ("bf16", "accelerated", "bf16"),
        ("fp32", "accelerated", "fp32"),
        ("auto", "one-stage", "fp32"),
    ):
        pipeline = Pipeline.from_config(load_config(None, [*stages, f"fine.precision={setting}", f"mode={mode}"]))
        assert pipeline(volume).report.precision == used
