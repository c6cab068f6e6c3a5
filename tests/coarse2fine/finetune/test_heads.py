"""Heads upon networks: what learns, how fast, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from coarse2fine.errors import ConfigError
from coarse2fine.finetune.heads import put_head
from coarse2fine.finetune.rates import rate_groups
from coarse2fine.finetune.tasks import Classification, Segmentation, Task
from coarse2fine.networks.vit import ViT, ViTShape
from coarse2fine.nnunet.loading import load_plans, new_network

LABELS = Classification(("a", "b"))
VOXELS = Segmentation(("background", "x", "y"))


def vit(*image: int, patch: int = 4, depth: int = 2) -> ViT:
    return ViT(ViTShape(1, image, (patch,) * len(image), 24, depth, 2))


@pytest.fixture
def unet(model_folder: Callable[..., Path]) -> nn.Module:
    model = load_plans(model_folder() / "plans.json", "3d_fullres")
    return new_network(model, 3, 0)


@pytest.mark.parametrize("task", [LABELS, VOXELS], ids=["labels", "voxels"])
@pytest.mark.parametrize("image", [(16, 24), (8, 16, 12)], ids=["2D", "3D"])
def test_put_head__a_transformer__gives_outputs_for_images_or_voxels_and_all_of_it_learns(
    task: Task, image: tuple[int, ...]
) -> None:
    """Every parameter gets a gradient."""
    tuned = put_head(vit(*image), task)
    outputs = tuned(torch.randn(2, 1, *image))
    assert outputs.shape == (2, task.outputs, *(image if task is VOXELS else ()))
    outputs.square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in tuned.parameters())


@pytest.mark.parametrize("patch", [2, 3, 5, 8])
def test_put_head__patches_of_any_edge__come_back_to_the_resolution_of_the_image(patch: int) -> None:
    """Powers of two or not."""
    tuned = put_head(vit(3 * patch, 2 * patch, patch=patch), VOXELS)
    assert tuned(torch.randn(1, 1, 3 * patch, 2 * patch)).shape == (1, 3, 3 * patch, 2 * patch)


def test_put_head__network_of_nnunet__encoder_for_labels_and_all_of_it_for_voxels(unet: nn.Module) -> None:
    """For labels of whole volumes the decoder is not trained; the head reads the mean of the last stage."""
    images = torch.randn(2, 1, 8, 16, 16)
    segmenter = put_head(unet, VOXELS)
    assert torch.equal(segmenter(images), unet(images))
    assert all(one.requires_grad for one in segmenter.parameters())
    classifier = put_head(unet, LABELS)
    expected = unet.encoder(images)[-1].mean((2, 3, 4)) @ classifier.head.weight.T  # type: ignore[operator, union-attr]
    assert torch.allclose(classifier(images), expected, atol=1e-6)
    learns = {name for name, one in classifier.named_parameters() if one.requires_grad}
    assert all(name.startswith(("network.encoder", "head")) for name in learns)


@pytest.mark.parametrize("task", [LABELS, VOXELS], ids=["labels", "voxels"])
def test_put_head__frozen__only_the_head_learns_and_nothing_is_dropped(task: Task) -> None:
    """The network is not in training even while the head is."""
    network = ViT(ViTShape(1, (16, 16), (4, 4), 24, 2, 2), drop_path=0.5)
    tuned = put_head(network, task, frozen=True).train()
    assert not network.training
    assert tuned.training
    before = {name: one.clone() for name, one in network.named_parameters()}
    optimizer = torch.optim.SGD(rate_groups(tuned, network, 0.5), 0.1)
    tuned(torch.randn(4, 1, 16, 16)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(one, before[name]) for name, one in network.named_parameters())


def test_put_head__the_same_seed__gives_the_same_head_and_leaves_other_random_numbers_alone() -> None:
    """Another seed, another head."""
    network, state = vit(16, 16), torch.get_rng_state()
    heads = [put_head(network, LABELS, seed=seed).head.weight for seed in (0, 0, 1)]  # type: ignore[union-attr]
    assert torch.equal(heads[0], heads[1])  # type: ignore[arg-type]
    assert not torch.equal(heads[0], heads[2])  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)


def scales(tuned: nn.Module, network: nn.Module, decay: float) -> dict[str, float]:
    """The scale of each parameter's rate by its name."""
    names = {id(one): name for name, one in tuned.named_parameters()}
    return {names[id(one)]: group["scale"] for group in rate_groups(tuned, network, decay) for one in group["params"]}


def test_rate_groups__transformer__scale_by_the_layers_above() -> None:
    """For 3 blocks: 0.5^4 for what makes tokens, then 0.5^3 to 0.5, and 1 for the last norm and the head."""
    network = vit(16, 16, depth=3)
    tuned = put_head(network, LABELS)
    found = scales(tuned, network, 0.5)
    assert found.keys() == dict(tuned.named_parameters()).keys()
    assert {found["network.project.weight"], found["network.project.bias"], found["network.class_token"]} == {0.5**4}
    for block in range(3):
        assert {value for name, value in found.items() if f"blocks.{block}." in name} == {0.5 ** (3 - block)}
    assert {found["network.norm.weight"], found["head.weight"], found["head.bias"]} == {1.0}
    assert set(scales(tuned, network, 1.0).values()) == {1.0}


def test_rate_groups__network_of_nnunet__scale_by_the_stages_of_the_encoder(unet: nn.Module) -> None:
    """Three stages: 0.5^3, 0.5^2, 0.5, and 1 for the decoder."""
    tuned = put_head(unet, VOXELS)
    found = scales(tuned, unet, 0.5)
    assert found.keys() == dict(tuned.named_parameters()).keys()
    for stage in range(3):
        assert {value for name, value in found.items() if f"encoder.stages.{stage}." in name} == {0.5 ** (3 - stage)}
    assert {value for name, value in found.items() if ".decoder." in name} == {1.0}


@pytest.mark.parametrize("decay", [0.0, 1.1, -1.0, float("nan")])
def test_rate_groups__decay_out_of_range__is_refused_with_one_that_works(decay: float) -> None:
    """The remedy names an option with a value."""
    network = vit(16, 16)
    with pytest.raises(ConfigError, match="the layer decay is") as error:
        rate_groups(network, network, decay)
    assert rate_groups(network, network, float(error.value.remedy.rstrip(".").split()[-1]))
