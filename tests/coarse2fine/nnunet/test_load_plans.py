"""Plans of a model that is yet to be trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coarse2fine.errors import ModelError, UntrustedModelError
from coarse2fine.nnunet.loading import load_model, load_plans, new_network, planned_batch


def test_load_plans__plans_of_a_model__sees_images_as_the_model_does(model_folder: Callable[..., Path]) -> None:
    """All that says how images are read, turned, normalised and resampled is the same."""
    folder = model_folder(channels=2, transpose=(2, 0, 1), scheme="CTNormalization", spacing=(3.0, 1.5, 1.0))
    trained, untrained = load_model(folder), load_plans(folder / "plans.json", "3d_fullres")
    names = {field.name for field in dataclasses.fields(trained)}
    names -= {"folder", "folds", "networks", "labels", "dataset", "mirror_axes"}
    assert {name: getattr(untrained, name) for name in names} == {name: getattr(trained, name) for name in names}
    assert planned_batch(untrained) == 2


def test_new_network__seeds__fix_the_weights_and_the_shapes_are_the_models(model_folder: Callable[..., Path]) -> None:
    """PyTorch's own random numbers are left alone."""
    folder = model_folder()
    model = load_plans(folder / "plans.json", "3d_fullres")
    state = torch.random.get_rng_state()
    first, again, other = (new_network(model, 2, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    trained = load_model(folder).networks[0].state_dict()
    assert {name: tensor.shape for name, tensor in first.items()} == {name: t.shape for name, t in trained.items()}


def test_load_plans__what_is_not_3d_images_alone__is_refused(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A configuration that is not there, a 2D one, a cascade, malformed plans, and code."""
    cascade = model_folder(cascade=True) / "plans.json"
    plans = json.loads(cascade.read_text())
    with pytest.raises(ModelError, match="has no configuration '2d'") as raised:
        load_plans(cascade, "2d")
    assert "3d_lowres" in raised.value.remedy
    with pytest.raises(ModelError, match="also sees labels of 3d_lowres") as raised:
        load_plans(cascade, "3d_cascade_fullres")
    assert "-c 3d_lowres" in raised.value.remedy
    load_plans(cascade, "3d_lowres")

    path = tmp_path / "nnUNetPlans.json"
    for changes, words in (
        ({"patch_size": [16, 16]}, "nnUNetPlans.json is a 2D model"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"spacing": None}, "nnUNetPlans.json is incomplete or malformed"),
    ):
        changed = {**plans, "configurations": {"3d_fullres": plans["configurations"]["3d_lowres"] | changes}}
        path.write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=words):
            load_plans(path, "3d_fullres")
    plans["configurations"]["3d_lowres"]["architecture"]["network_class_name"] = "os.system"
    path.write_text(json.dumps(plans))
    with pytest.raises(UntrustedModelError, match="network_class_name"):
        load_plans(path, "3d_lowres")
