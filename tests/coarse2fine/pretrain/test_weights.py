"""Weights as files, read by nnU-Net itself."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from coarse2fine.errors import ModelError
from coarse2fine.networks.vit import ViTShape, new_vit
from coarse2fine.nnunet.loading import load_plans, new_network
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.pictures import Intensities
from coarse2fine.pretrain.weights import (
    NNUNET,
    WEIGHTS,
    fill,
    load_vit,
    read_intensities,
    read_tensors,
    tensors_of,
    write_tensors,
    write_weights,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., Path]) -> Model:
    return load_plans(model_folder() / "plans.json", "3d_fullres")


def nnunets_own(model: Model, classes: int) -> nn.Module:
    """What nnU-Net trains, with deep supervision."""
    plan = PlansManager(dict(model.plans)).get_configuration(model.configuration)
    return get_network_from_plans(
        plan.network_arch_class_name,
        plan.network_arch_init_kwargs,
        plan.network_arch_init_kwargs_req_import,
        model.channels,
        classes,
        deep_supervision=True,
    )


def test_write_weights__nnunets_loader__takes_every_tensor_but_those_of_segmentation(
    model: Model, tmp_path: Path
) -> None:
    """Key by key, into a network of three classes."""
    network = new_network(model, model.channels, 3)
    write_weights(tmp_path, network)
    theirs = nnunets_own(model, 3)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    with contextlib.redirect_stdout(io.StringIO()):
        load_pretrained_weights(theirs, tmp_path / NNUNET)
    ours, after = network.state_dict(), theirs.state_dict()
    assert set(before) == set(ours)
    kept = [name for name in before if ".seg_layers." in name]
    assert kept
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert all(torch.equal(after[name], ours[name]) for name in before if name not in kept)
    content = torch.load(tmp_path / NNUNET, weights_only=True)  # holds nothing but tensors
    assert list(content) == ["network_weights"]


def test_fill__weights_that_were_written__are_all_there(model: Model, tmp_path: Path) -> None:
    """Under every name that nnU-Net lists them by."""
    network, other = new_network(model, 1, 3), new_network(model, 1, 4)
    assert not torch.equal(next(network.parameters()), next(other.parameters()))
    write_weights(tmp_path, network)
    modes = {(tmp_path / name).stat().st_mode for name in (WEIGHTS, NNUNET)}
    assert len(modes) == 1  # who may read the one may read the other
    fill(other, read_tensors(tmp_path / WEIGHTS)[0], tmp_path / WEIGHTS, "")
    ours = network.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in other.state_dict().items())


def test_fill__weights_of_another_network__names_the_first_that_differs(
    model: Model, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """And changes nothing."""
    write_weights(tmp_path, new_network(model, 2, 0))
    tensors, _ = read_tensors(tmp_path / WEIGHTS)
    network = new_network(model, 1, 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    words = r"is of another network: decoder\.seg_layers\.0\.weight is \(2, 8, 1, 1, 1\) instead of \(1, 8, 1, 1, 1\)"
    with pytest.raises(ModelError, match=words):
        fill(network, tensors, tmp_path / WEIGHTS, "")
    tensors = dict(tensors_of(new_network(model, 1, 0)))
    first = next(iter(tensors))
    with pytest.raises(ModelError, match=f"{re.escape(first)} is missing instead of"):
        fill(network, {name: tensor for name, tensor in tensors.items() if name != first}, tmp_path, "")
    with pytest.raises(ModelError, match=r"another is \(1,\) instead of missing"):
        fill(network, tensors | {"another": torch.zeros(1)}, tmp_path, "")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_read_tensors__no_such_file__one_line(tmp_path: Path) -> None:
    """Missing, or a pickle, which is not opened as one."""
    with pytest.raises(ModelError, match="does not exist"):
        read_tensors(tmp_path / WEIGHTS)
    torch.save({"network_weights": {}}, tmp_path / NNUNET)
    with pytest.raises(ModelError, match="is damaged or no safetensors file"):
        read_tensors(tmp_path / NNUNET)


VIT = ViTShape(1, (8, 12), (4, 4), width=16, depth=2, heads=2)


def test_load_vit__weights_that_were_written__are_the_whole_network(tmp_path: Path) -> None:
    """Shape, weights, and how pictures were normalised."""
    network = new_vit(VIT, 3).eval()
    write_weights(tmp_path, network, Intensities((90.5,), (40.25,)))
    assert not (tmp_path / NNUNET).exists()
    assert "positions" not in read_tensors(tmp_path / WEIGHTS)[0]  # which follow from the shape
    again = load_vit(tmp_path / WEIGHTS, drop_path=0.1)
    assert again.shape == VIT
    assert again.blocks[1].drop_path == 0.1  # type: ignore[union-attr]
    images = torch.randn(2, 1, 8, 12, generator=torch.manual_seed(0))
    assert torch.equal(again.eval()(images), network(images))
    assert read_intensities(tmp_path / WEIGHTS) == Intensities((90.5,), (40.25,))
    write_weights(tmp_path, network)
    assert read_intensities(tmp_path / WEIGHTS) is None


def test_load_vit__file_that_says_something_else__one_line(model: Model, tmp_path: Path) -> None:
    """Of no transformer, of impossible shape, or of a larger one than it holds, of which nothing is built."""
    path = tmp_path / WEIGHTS
    write_weights(tmp_path, new_network(model, 1, 0))
    with pytest.raises(ModelError, match="is of no vision transformer"):
        load_vit(path)
    tensors = dict(tensors_of(new_vit(VIT, 0)))
    shape = asdict(VIT)
    for change, says in (
        ({"width": 15}, "what it says of its vit cannot be: a width of 15 is not divisible"),
        ({"patch": [0, 4]}, "what it says of its vit cannot be: a vision transformer's patch is 0"),
        ({"depth": "many"}, "what it says of its vit cannot be"),
        ({"depth": 3}, r"blocks\.2\.mlp\.0\.weight is missing instead of \(64, 16\)"),
        ({"width": 60_000, "heads": 1}, r"project\.weight is \(16, 16\) instead of \(60000, 16\)"),
        ({"image": [8192, 8192]}, "what it says of its vit cannot be: images of 8192 x 8192 have"),
    ):
        write_tensors(path, tensors, {"vit": json.dumps(shape | change)})
        with pytest.raises(ModelError, match=says):
            load_vit(path)
    write_tensors(path, tensors, {"vit": json.dumps(shape), "intensities": "[]"})
    load_vit(path)
    with pytest.raises(ModelError, match="what it says of its intensities cannot be"):
        read_intensities(path)


def imported_by(*modules: str) -> set[str]:
    """Modules of ours that they import when they are imported, and those that these do."""
    seen, left = set[str](), list(modules)
    while left:
        name = left.pop()
        path = ROOT / name.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not file.is_file():
            continue
        seen.add(name)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("coarse2fine"):
                left += [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
            elif isinstance(node, ast.Import):
                left += [one.name for one in node.names]
    return seen


@pytest.mark.long
def test_pretrain__modules_of_inference__do_not_import_it() -> None:
    """Neither directly nor through others, unless an option asks for it; its own command does."""
    found = imported_by(*(f"coarse2fine.cli.{name}" for name in ("infer_run", "predict_run", "stores", "serve")))
    assert {"coarse2fine.pipeline", "coarse2fine.large.run"} <= found
    ours = ("coarse2fine.pretrain", "coarse2fine.finetune", "coarse2fine.networks")
    assert not {name for name in found if name.startswith(ours)}
    assert "coarse2fine.pretrain.weights" in imported_by("coarse2fine.pretrain.run")
