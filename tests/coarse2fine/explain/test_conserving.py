"""Gradients that add up: against the score itself, and on images where it is known what was found."""

from __future__ import annotations

import pytest
import torch
from planted import planted
from torch import nn

from coarse2fine.explain.conserving import conserving
from coarse2fine.explain.gradcam import grad_cam
from coarse2fine.finetune.heads import Classifier
from coarse2fine.networks.vit import ViT, ViTShape


def transformer(dimensions: int) -> nn.Module:
    """A classifier with random weights, and attention that is far from even."""
    torch.manual_seed(dimensions)
    network = Classifier(ViT(ViTShape(1, (16, 24, 8)[:dimensions], (8,) * dimensions, width=24, depth=3, heads=2)), 2)
    with torch.no_grad():
        for block in network.network.blocks:
            block.qkv.weight.mul_(3)
    return network.eval()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_conserving__without_other_layers__feature_times_gradient_adds_up_to_the_score(dimensions: int) -> None:
    """In front of every block, if perceptrons add nothing and no biases; plain gradients add up to something else."""
    network = transformer(dimensions)
    with torch.no_grad():
        for block in network.network.blocks:
            block.mlp[-1].weight.zero_()
    tokens = network.network.embed(torch.randn(2, 1, *network.network.shape.image)).detach().requires_grad_()

    def score(tokens: torch.Tensor, first: int) -> torch.Tensor:
        for block in network.network.blocks[first:]:
            tokens = block(tokens)
        return network.head(network.network.norm(tokens)[:, 1:].mean(1))[:, 1].sum()

    for first in range(4):
        plain = score(tokens, first)
        (slope,) = torch.autograd.grad(plain, tokens)
        assert ((slope * tokens).sum() - plain).abs() > 0.1 * plain.abs()
        with conserving(network):
            found = score(tokens, first)
            (slope,) = torch.autograd.grad(found, tokens)
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close((slope * tokens).sum(), found)


def test_conserving__whatever_happens__leaves_no_hooks_behind() -> None:
    """And gradients are plain again."""
    network = transformer(2)
    images = torch.randn(1, 1, 16, 24)
    before = grad_cam(network, images, "network.blocks.0", 0)
    with pytest.raises(KeyError), conserving(network):
        raise KeyError
    assert not any(module._forward_hooks for module in network.modules())
    torch.testing.assert_close(grad_cam(network, images, "network.blocks.0", 0), before)


class Normed(nn.Module):
    """Brightness of patches beside two constants, a layer norm of each token, and the mean over tokens."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[dimensions - 2](1, 3, 4, stride=4)
        self.embed = nn.Sequential(convolution, nn.Flatten(2), Turned())
        self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 1)
        with torch.no_grad():
            convolution.weight.zero_()
            convolution.weight[0] = 1 / 4**dimensions
            convolution.bias.copy_(torch.tensor([-3.0, -1.0, 1.0]))
            self.head.weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(images)).mean(1))


class Turned(nn.Module):
    """Channels last."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.transpose(1, 2)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_grad_cam__in_front_of_a_layer_norm__hits_what_was_planted_only_if_it_conserves(dimensions: int) -> None:
    """Place by place; without, nothing is left but rounding and the norm's epsilon."""
    network, hits = Normed(dimensions), 0
    for seed in range(20):
        images, inside = planted((32,) * dimensions, seed=seed)
        plain, found = (
            grad_cam(network, images, "embed", 0, method="hires-cam", conserve=conserve)[0]
            for conserve in (False, True)
        )
        assert plain.max() < 1e-3 * found.max()
        hits += bool(inside.flatten()[found.argmax()])
    assert hits >= 18
