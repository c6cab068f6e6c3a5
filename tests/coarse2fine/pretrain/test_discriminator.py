"""The discriminator and its losses, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.discriminator import Discriminator, Form, deception, detection


def images(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 2, *shape)).astype(np.float32))


@pytest.mark.parametrize("shape", [(32, 20), (16, 12, 20)])
def test_discriminator__layers__are_those_of_the_paper(shape: tuple[int, ...]) -> None:
    """Kernels, strides and widths; no norm after the first; small weights; a number for each eighth of an edge."""
    network = Discriminator(2, shape)
    convs = [layer for layer in network.layers if isinstance(layer, nn.Conv2d | nn.Conv3d)]
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 1]
    assert [conv.stride[0] for conv in convs] == [2, 2, 2, 1, 1]
    assert {conv.kernel_size for conv in convs} == {(3,) * len(shape)}
    names = [type(layer).__name__.rstrip("23d") for layer in network.layers]
    middle = ["Conv", "InstanceNorm", "LeakyReLU"]
    assert names == ["Conv", "LeakyReLU", *middle, *middle, *middle, "Conv"]
    assert all(conv.weight.std().item() == pytest.approx(0.02, rel=0.1) for conv in convs[:4])
    assert {layer.negative_slope for layer in network.layers if isinstance(layer, nn.LeakyReLU)} == {0.2}
    assert network(images(shape, 0)).shape[2:] == tuple(-(-size // 8) for size in shape)
    optimizer = network.make_optimizer()
    assert isinstance(optimizer, torch.optim.Adam)
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (2e-4, (0.5, 0.999))
    assert Discriminator(2, shape, rate=0.01).make_optimizer().defaults["lr"] == 0.01


@pytest.mark.parametrize("form", ["squares", "log"])
def test_losses__either_form__are_by_hand_and_each_side_gets_its_gradient_alone(form: Form) -> None:
    """Least squares to 1 and 0, or logarithms of probabilities; the discriminator's is halved."""
    network, real = Discriminator(2, (16, 16)), images((16, 16), 1)
    restored = images((16, 16), 0).requires_grad_()
    fake, true = (network(one).detach().double().numpy() for one in (restored, real))
    if form == "squares":
        deceived, detected = ((fake - 1) ** 2).mean(), (((true - 1) ** 2).mean() + (fake**2).mean()) / 2
    else:
        deceived = -np.log(1 / (1 + np.exp(-fake))).mean()
        detected = -(np.log(1 / (1 + np.exp(-true))).mean() + np.log(1 - 1 / (1 + np.exp(-fake))).mean()) / 2
    loss = deception(network, restored, form)
    assert loss.item() == pytest.approx(deceived, rel=1e-4)
    loss.backward()
    assert restored.grad is not None
    assert all(parameter.grad is None for parameter in network.parameters())
    restored.grad = None
    loss = detection(network, restored, real, form)
    assert loss.item() == pytest.approx(detected, rel=1e-4)
    loss.backward()
    assert restored.grad is None
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_accuracy__discriminator_that_learned__tells_noise_from_ramps() -> None:
    """A discriminator that says the same of all is right half of the time; after some steps it is right more often."""
    network = Discriminator(1, (16, 16), rate=2e-3)
    ramps = torch.linspace(-1, 1, 16).repeat(8, 1, 16, 1)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.6, (8, 1, 16, 16)).astype(np.float32))
    with torch.no_grad():
        network.layers[-1].bias.fill_(5.0)
    assert network.accuracy(noise, ramps, "squares") == 0.5
    optimizer = network.make_optimizer()
    for _ in range(15):
        optimizer.zero_grad()
        detection(network, noise, ramps, "squares").backward()
        optimizer.step()
    assert network.accuracy(noise, ramps, "squares") > 0.9
    assert network.accuracy(ramps, noise, "squares") < 0.1


def test_discriminator__tiny_images__are_refused_and_a_larger_edge_works() -> None:
    """Instead of PyTorch's error in the middle of a training."""
    with pytest.raises(ConfigError, match="images of 8 x 8 are too small for a discriminator") as raised:
        Discriminator(1, (8, 8))
    assert "more than 8" in raised.value.remedy
    assert Discriminator(1, (9, 8))(torch.rand(2, 1, 9, 8)).shape == (2, 1, 2, 1)
