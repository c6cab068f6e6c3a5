"""Grad-CAM of any network: against captum and MONAI, and on images where it is known what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from monai.networks.nets import BasicUNet, ViT
from monai.visualize import GradCAM
from planted import Cnn, Vit, planted
from tiny_models import TinyModel, network_of
from torch import nn
from torch.nn import functional as F

from coarse2fine.errors import ConfigError
from coarse2fine.explain.gradcam import grad_cam
from coarse2fine.explain.scores import found_in, score_of

SPACE = {2: (24, 32), 3: (16, 24, 20)}


def classifier(dimensions: int) -> nn.Module:
    """A small one with random weights, and activations that overwrite their input."""
    torch.manual_seed(dimensions)
    convolution, pool = ((nn.Conv2d, nn.AdaptiveAvgPool2d), (nn.Conv3d, nn.AdaptiveAvgPool3d))[dimensions - 2]
    features = nn.Sequential(
        convolution(1, 4, 3, padding=1),
        nn.ReLU(),
        convolution(4, 6, 3, stride=2),
        nn.Tanh(),
        convolution(6, 6, 3),
        nn.Tanh(),
    )
    return nn.Sequential(features, pool(2), nn.Flatten(), nn.Linear(6 * 2**dimensions, 3)).eval()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("layer", ["0.2", "0.5"])
def test_grad_cam__classifier__equals_captum_and_monai(dimensions: int, layer: str) -> None:
    """For every sample of a batch, resized to the input."""
    network, space = classifier(dimensions), SPACE[dimensions]
    images = torch.randn(2, 1, *space)
    ours = grad_cam(network, images, layer, 1)
    raw = LayerGradCam(network, network.get_submodule(layer)).attribute(images, 1, relu_attributions=True)
    mode = ("bilinear", "trilinear")[dimensions - 2]
    theirs = LayerAttribution.interpolate(raw, space, interpolate_mode=mode)[:, 0]
    monais = GradCAM(network, layer, postprocessing=lambda found: found)(images, class_idx=1)[:, 0]
    assert ours.shape == (2, *space)
    assert ours.max() > 0
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5 * float(ours.max()))
    torch.testing.assert_close(ours, monais.detach(), rtol=1e-5, atol=1e-5 * float(ours.max()))


def unet(dimensions: int) -> tuple[nn.Module, torch.Tensor, str]:
    """MONAI's in 2D, nnU-Net's in 3D; an input, and a layer that later ones overwrite."""
    if dimensions == 2:
        return BasicUNet(2, 1, 3, features=(4, 4, 8, 8, 8, 4)).eval(), torch.randn(1, 1, 32, 32), "down_2"
    model = TinyModel(labels={"background": 0, "one": 1, "two": 2})
    network = network_of(model, 0).eval()
    network.decoder.deep_supervision = False
    return network, torch.randn(1, 1, 8, 16, 16), "encoder.stages.2"


@pytest.mark.parametrize("dimensions", [2, 3])
def test_grad_cam__segmentation__equals_captum_of_the_summed_logits(dimensions: int) -> None:
    """Over the voxels in which the class is found, and over given ones."""
    torch.manual_seed(0)
    network, images, layer = unet(dimensions)
    with torch.no_grad():
        outputs = network(images)
    drawn = torch.zeros(outputs.shape[2:])
    drawn[tuple(slice(2, 7) for _ in range(dimensions))] = 1
    for mask, voxels in ((None, outputs.argmax(1) == 2), (drawn, drawn[None])):

        def summed(batch: torch.Tensor, voxels: torch.Tensor = voxels) -> torch.Tensor:
            return (network(batch)[:, 2] * voxels).flatten(1).sum(1)

        raw = LayerGradCam(summed, network.get_submodule(layer)).attribute(images, relu_attributions=True)
        theirs = F.interpolate(raw, images.shape[2:], mode=("bilinear", "trilinear")[dimensions - 2])[:, 0].detach()
        ours = grad_cam(network, images, layer, 2, mask=mask)
        assert ours.max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(ours.max()))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_grad_cam__transformer__equals_the_formula_on_patches_alone(dimensions: int) -> None:
    """The class token is left out, and the grid of patches is found."""
    torch.manual_seed(0)
    space = (32, 48, 16)[:dimensions]
    network = ViT(
        1,
        space,
        8,
        12,
        24,
        num_layers=2,
        num_heads=2,
        classification=True,
        num_classes=2,
        spatial_dims=dimensions,
        post_activation="",
    ).eval()
    images = torch.randn(1, 1, *space)
    layer = network.blocks[-1].norm1
    kept: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, given, output: kept.append(output))
    (gradient,) = torch.autograd.grad(network(images)[0][0, 1], kept)
    handle.remove()
    size = tuple(edge // 8 for edge in space)
    patches, slopes = (tokens[:, 1:].transpose(1, 2) for tokens in (kept[0].detach(), gradient))
    raw = F.relu((slopes.mean(2, keepdim=True) * patches).sum(1)).reshape(1, 1, *size)
    theirs = F.interpolate(raw, space, mode=("bilinear", "trilinear")[dimensions - 2])[:, 0]
    ours = grad_cam(network, images, "blocks.1.norm1", 1)
    assert ours.max() > 0
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grad_cam(network, images, "blocks.1.norm1", 1, grid=size), ours)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (Cnn, "spots.0"),
        (Cnn, "spots"),
        (Vit, "norm1"),
        (lambda dimensions: Vit(dimensions, class_token=False), "norm1"),
    ],
)
def test_grad_cam__planted_object__is_hit(make: Callable[[int], nn.Module], layer: str, dimensions: int) -> None:
    """The highest value lies in the object that the network found, in nine draws of ten at least."""
    network, hits = make(dimensions), 0
    for seed in range(20):
        images, inside = planted((32,) * dimensions, seed=seed)
        assert network(images).argmax(1) == 0, seed
        found = grad_cam(network, images, layer, 0)[0]
        hits += bool(inside.flatten()[found.argmax()])
    assert hits >= 18


def test_grad_cam__any_network__is_left_as_it_was() -> None:
    """Weights, their gradients, running means, modes and hooks."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    images = torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        grad_cam(network, images, "0", 0)
    for layer in ("0", "9"):
        try:
            grad_cam(network, images, layer, 0)
        except ConfigError:
            assert layer == "9"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())


def test_grad_cam__layer_before_one_that_overwrites_it__sees_its_own_output() -> None:
    """As nnU-Net's activations do: the same map as where nothing is overwritten; frozen weights change nothing."""
    torch.manual_seed(0)
    maps = []
    for inplace in (False, True):
        torch.manual_seed(1)
        network = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.LeakyReLU(0.1, inplace=inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        network.requires_grad_(not inplace)
        maps.append(grad_cam(network, torch.linspace(-1, 1, 64).view(1, 1, 8, 8), "0", 2))
    assert maps[0].max() > 0
    torch.testing.assert_close(*maps)


def test_grad_cam__network_with_several_outputs__explains_the_first() -> None:
    """As networks with deep supervision have them."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [self.first(images), self.second(images)]

    network, images = Deep(), torch.rand(1, 1, 6, 6) + 1
    assert grad_cam(network, images, "first", 0, mask=torch.ones(6, 6)).shape == (1, 6, 6)
    with pytest.raises(ConfigError, match="does not depend on layer second"):
        grad_cam(network, images, "second", 0)


class Odd(nn.Module):
    """Layers whose outputs are no maps."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.pool, self.unused = nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Identity()
        self.flat, self.split = nn.Flatten(), Split()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second = self.split(self.features(images))
        return self.flat(self.pool(torch.cat([first, second], 1)))


class Split(nn.Module):
    """Two outputs."""

    def forward(self, features: torch.Tensor) -> Any:
        return features.chunk(2, 1)


@pytest.mark.parametrize(
    ("layer", "target", "problem", "remedy"),
    [
        ("featuers", 0, "no layer 'featuers'", "Name one as it does: features"),
        ("", 0, "no layer ''", "Name one as it does: features"),
        ("flat", 0, r"layer flat gives \(1, 2\) for an input of \(1, 1, 9, 9\), which is no map", "before pooling"),
        ("split", 0, "layer split gives several tensors", "one of its parts, or the layer after it"),
        ("unused", 0, "does not run its layer unused", "lies between"),
        ("features", 2, "class 2 of a network with 2 outputs", "up to 1"),
        ("features", -1, "class -1 of a network with 2 outputs", "up to 1"),
    ],
)
def test_grad_cam__what_cannot_be__is_one_clear_line(layer: str, target: int, problem: str, remedy: str) -> None:
    """And what the remedy names works."""
    network, images = Odd(), torch.rand(1, 1, 9, 9)
    with pytest.raises(ConfigError, match=problem) as error:
        grad_cam(network, images, layer, target)
    assert remedy in error.value.remedy
    assert grad_cam(network, images, "features", 1).shape == (1, 9, 9)


def test_grad_cam__tokens_that_are_no_grid__ask_for_one() -> None:
    """Patches with unequal edges and further tokens need to be told; a grid that is too large is refused."""

    class Registers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = Tokens(), nn.Linear(1, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.tokens(images).mean(1))

    class Tokens(nn.Module):
        """Three tokens of no patch, then patches of 2 x 4."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            patches = F.avg_pool2d(images, (2, 4)).flatten(2).transpose(1, 2)
            return torch.cat([torch.full((1, 3, 1), 100.0), patches], 1)

    network = Registers()
    with torch.no_grad():
        network.head.weight.fill_(1)
    images = torch.zeros(1, 1, 8, 16)
    images[..., 2:4, 8:12] = 1
    with pytest.raises(ConfigError, match="gives 19 tokens, which are no grid") as error:
        grad_cam(network, images, "tokens", 0)
    assert "grid=(rows, columns)" in error.value.remedy
    with pytest.raises(ConfigError, match="fewer than a grid of"):
        grad_cam(network, images, "tokens", 0, grid=(5, 4))
    found = grad_cam(network, images, "tokens", 0, grid=(4, 4))[0]
    assert divmod(int(found.argmax()), 16)[0] in (2, 3)
    assert divmod(int(found.argmax()), 16)[1] in range(8, 12)


def test_score_of__mask_of_another_shape__is_refused() -> None:
    """It would otherwise be stretched by broadcasting; shapes with and without samples are taken."""
    outputs = torch.rand(2, 3, 4, 5)
    with pytest.raises(ConfigError, match=r"a mask of shape \(4, 1\) for outputs of shape \(4, 5\)"):
        score_of(0, torch.ones(4, 1))(outputs)
    for mask in (torch.ones(4, 5), torch.ones(2, 4, 5)):
        torch.testing.assert_close(score_of(0, mask)(outputs), outputs[:, 0].sum((1, 2)))


def test_found_in__overlapping_and_single_classes__are_where_their_output_is_positive() -> None:
    """And exclusive ones where theirs is largest."""
    outputs = torch.tensor([[[-1.0, 2.0, 1.0]], [[-2.0, 1.0, 3.0]]])[None]
    assert found_in(outputs, 0).tolist() == [[[True, True, False]]]
    assert found_in(outputs, 0, regions=True).tolist() == [[[False, True, True]]]
    assert found_in(outputs[:, :1], 0).tolist() == [[[False, True, True]]]


def test_grad_cam__hires_cam__is_the_product_place_by_place() -> None:
    """By hand; and where the score is a mean, so that gradients are the same everywhere, it is Grad-CAM's."""
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 1))
    images = torch.rand(1, 1, 6, 8)
    mask = torch.zeros(6, 8)
    mask[1:4, 2:5] = 1
    with torch.no_grad():
        features, weights = network[0](images), network[1].weight[1]
        by_hand = F.relu((features[0] * weights.view(3, 1, 1)).sum(0) * mask)
    torch.testing.assert_close(grad_cam(network, images, "0", 1, mask=mask, method="hires-cam")[0], by_hand)
    pooled = nn.Sequential(*network, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.testing.assert_close(
        *(grad_cam(pooled, images, "0", 1, method=method) for method in ("grad-cam", "hires-cam"))
    )


def test_grad_cam__before_an_instance_normalisation__is_nothing_but_hires_cam_is_not() -> None:
    """The mean of gradients over space is 0 there, whatever the network has learned."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3), nn.Conv2d(3, 2, 1))
    images = torch.rand(1, 1, 12, 12)
    mask = torch.zeros(10, 10)
    mask[2:5, 2:5] = 1
    means, places = (
        grad_cam(network, images, "0", 1, mask=mask, method=method) for method in ("grad-cam", "hires-cam")
    )
    assert means.max() < 1e-5 * places.max()
