"""Features of any network."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TinyModel, network_of

from coarse2fine.networks.features import encode, pooled, width_of
from coarse2fine.networks.vit import ViTShape, new_vit


def test_encode__nnunets_network__is_its_encoders_last_stage() -> None:
    """Also what its decoder begins with."""
    network = network_of(TinyModel(), 0).eval()
    images, stages = torch.randn(2, 1, 8, 16, 16, generator=torch.manual_seed(0)), []
    network.encoder.stages[-1].register_forward_hook(lambda module, inputs, output: stages.append(output))
    network(images)
    features = encode(network, images)
    assert torch.equal(features, stages[0])
    assert features.shape == (2, width_of(network), 4, 4, 4)
    assert torch.allclose(pooled(network, images), features.mean((2, 3, 4)), atol=1e-6)


@pytest.mark.parametrize("image", [(8, 12), (4, 8, 12)])
def test_encode__vision_transformer__is_its_tokens_without_that_of_the_class(image: tuple[int, ...]) -> None:
    """Back in their places."""
    network = new_vit(ViTShape(1, image, (4,) * len(image), 24, 1, 2), 0).eval()
    images = torch.randn(2, 1, *image, generator=torch.manual_seed(0))
    features, tokens = encode(network, images), network.tokens(images)
    assert features.shape == (2, width_of(network), *network.shape.grid)
    assert torch.allclose(features.flatten(2), tokens[:, 1:].transpose(1, 2), atol=1e-6)
    assert torch.allclose(pooled(network, images), tokens[:, 1:].mean(1), atol=1e-6)
