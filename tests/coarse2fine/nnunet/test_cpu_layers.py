"""Lean copies of networks beside the networks themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from coarse2fine.nnunet.cpu_layers import ChannelsLast, InPlaceNorm, Planes, lean
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two-folds-regions": {"folds": ("0", "1"), "labels": {"background": 0, "whole": [1, 2], "core": [2]}},
    "running-statistics": {"norm_options": {"eps": 1e-5, "affine": True, "track_running_stats": True}},
    "no-affine": {"norm_options": {"eps": 1e-2, "affine": False}},
    "batch-norm": {"norm": nn.BatchNorm3d, "trainer": "nnUNetTrainerBN"},
}
KINDS["two-folds-regions"]["regions_class_order"] = [1, 2]


def outputs(model: Model, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return model.forward(torch.randn(1, 1, *model.patch) * 3 + 1, mirroring=False)


@pytest.mark.parametrize("kind", KINDS)
def test_lean__any_kind_of_norm__gives_the_networks_outputs(kind: str, model_folder: Callable[..., Path]) -> None:
    """Up to rounding; a layer that keeps statistics of its own is left as it is."""
    model = load_model(model_folder(**KINDS[kind]))
    copy = lean(model)
    expected = outputs(model)
    torch.testing.assert_close(outputs(copy), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs(model), expected, rtol=0, atol=0)  # the original is as it was
    kept = any(isinstance(layer, InPlaceNorm) for layer in copy.networks[0].modules())
    assert kept == (kind not in ("running-statistics", "batch-norm"))


@pytest.mark.parametrize("change", ["hook", "pre-hook", "reflecting", "same"])
def test_lean__layer_with_more_than_its_weights__still_does_all_of_it(
    change: str, model_folder: Callable[..., Path]
) -> None:
    """Hooks and other kinds of padding change what a convolution gives, and the lean network's in the same way."""
    model = load_model(model_folder())
    plain = outputs(model)
    layer = next(layer for layer in model.networks[0].modules() if isinstance(layer, nn.Conv3d))
    if change == "hook":
        layer.register_forward_hook(lambda module, inputs, output: output * torch.linspace(0, 2, output.shape[-1]))
    elif change == "pre-hook":
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].abs(),))
    elif change == "reflecting":
        layer.padding_mode, layer._reversed_padding_repeated_twice = "circular", [1] * 6
    else:
        layer.padding = "same"
    expected = outputs(model)
    assert torch.equal(expected, plain) == (change == "same")
    copy = lean(model)
    torch.testing.assert_close(outputs(copy), expected, rtol=1e-4, atol=1e-4)
    assert any(isinstance(module, ChannelsLast) for module in copy.networks[0].modules())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_planes__two_inputs__gives_the_layers_outputs_in_planes(bias: bool, precision: torch.dtype) -> None:
    """Whatever the order of the input's channels, those of the output lie one after the other."""
    torch.manual_seed(1)
    layer, features = nn.Conv3d(8, 5, 1, bias=bias), torch.randn(2, 8, 4, 6, 5)
    expected = layer.to(precision)(features.to(precision)).float()
    for order in (torch.contiguous_format, torch.channels_last_3d):
        found = Planes(layer, precision)(features.contiguous(memory_format=order))
        assert found.is_contiguous()
        assert found.dtype == precision
        torch.testing.assert_close(
            found.float(), expected, rtol=1e-2 if precision == torch.bfloat16 else 1e-5, atol=1e-5
        )


@pytest.mark.parametrize("change", ["none", "hook", "wide"])
def test_lean__last_layer__is_replaced_where_it_mixes_channels_only(
    change: str, model_folder: Callable[..., Path]
) -> None:
    """The decoder of the copy has it; a layer that does more than that stays, and so do its outputs."""
    model = load_model(model_folder())
    heads: Any = model.networks[0].get_submodule("decoder.seg_layers")
    if change == "hook":
        heads[-1].register_forward_hook(lambda module, inputs, output: output * 2)
    elif change == "wide":
        heads[-1] = nn.Conv3d(heads[-1].in_channels, heads[-1].out_channels, 3, padding=1)
    expected, copy = outputs(model), lean(model)
    torch.testing.assert_close(outputs(copy), expected, rtol=1e-4, atol=1e-4)
    assert any(isinstance(layer, Planes) for layer in copy.networks[0].modules()) == (change == "none")
    assert not any(isinstance(layer, Planes) for layer in model.networks[0].modules())
