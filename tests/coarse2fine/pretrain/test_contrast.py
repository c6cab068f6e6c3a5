"""Contrast, against brute force."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from coarse2fine.errors import ConfigError
from coarse2fine.networks.features import pooled
from coarse2fine.networks.vit import ViT, ViTShape
from coarse2fine.pretrain.borders import Border
from coarse2fine.pretrain.contrast import MomentumContrast, info_nce, nt_xent
from coarse2fine.pretrain.exemplar import Exemplar


def rows(seed: int, count: int, width: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32))


def unit(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def images(seed: int = 0, count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 1, 8, 8)).astype(np.float32))


def network() -> ViT:
    return ViT(ViTShape(1, (8, 8), (4, 4), 8, 1, 2))


def test_nt_xent__two_views_of_each__is_the_mean_over_all_by_brute_force() -> None:
    """SimCLR's formula, view by view."""
    first, second = rows(0, 4), rows(1, 4)
    views = unit(np.concatenate([first.numpy(), second.numpy()]).astype(float))
    losses = []
    for at, view in enumerate(views):
        others = {other: np.exp(view @ views[other] / 0.2) for other in range(8) if other != at}
        losses.append(-np.log(others[(at + 4) % 8] / sum(others.values())))
    assert nt_xent(first, second, 0.2).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_info_nce__queries_and_a_queue__is_by_brute_force() -> None:
    """MoCo's formula, query by query; with no negatives there is nothing to lose."""
    queries, keys, queue = (torch.from_numpy(unit(rows(seed, n).numpy())) for seed, n in ((0, 3), (1, 3), (2, 6)))
    losses = []
    for query, key in zip(queries.numpy().astype(float), keys.numpy(), strict=True):
        right = np.exp(query @ key / 0.5)
        losses.append(-np.log(right / (right + np.exp(queue.numpy() @ query / 0.5).sum())))
    assert info_nce(queries, keys, queue, 0.5).item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert info_nce(queries, keys, queue[:0], 0.5).item() == 0


def test_momentum_contrast__steps__slow_copies_follow_and_the_queue_keeps_the_latest_keys() -> None:
    """By hand: at first a copy, then a share of it stays; keys are those of the slow copies, the oldest go."""
    net, slow = network(), 0.75
    contrast = MomentumContrast(network(), queue=5, momentum=slow)  # of other weights, as if they were loaded later
    expected, keys = copy.deepcopy(net), []
    for step in range(3):
        other = images(step)
        contrast.loss(net, pooled(net, other), other)
        with torch.no_grad():
            share = slow if step else 0.0
            for old, new in zip(expected.parameters(), net.parameters(), strict=True):
                old.copy_(share * old + (1 - share) * new)
            keys += [*unit(contrast.slow_project(pooled(expected, other)).numpy())]
            for name, value in contrast.slow_encoder.named_parameters():
                assert torch.allclose(value, expected.get_parameter(name), atol=1e-6)
            for parameter in net.parameters():
                parameter.add_(0.1)
    assert sorted(map(tuple, contrast.queue.numpy().round(4))) == sorted(map(tuple, np.array(keys[-5:]).round(4)))
    assert not any(parameter.requires_grad for parameter in contrast.slow_encoder.parameters())


def test_momentum_contrast__loss__is_against_keys_of_earlier_steps_and_changes_nothing_in_evaluation() -> None:
    """The first step has no negatives; only the network and its head get a gradient."""
    net = network()
    contrast = MomentumContrast(net, queue=8)
    assert contrast.loss(net, pooled(net, images(0)), images(1)).item() == 0
    before = {name: value.clone() for name, value in contrast.state_dict().items()}
    net.eval()
    loss = contrast.loss(net, pooled(net, images(2)), images(3))
    assert all(torch.equal(value, before[name]) for name, value in contrast.state_dict().items())
    queries = unit(contrast.project(pooled(net, images(2))).detach().numpy())
    keys = unit(contrast.slow_project(pooled(contrast.slow_encoder, images(3))).detach().numpy())
    right = np.exp((queries * keys).sum(1) / 0.2)
    wrong = np.exp(queries @ contrast.queue[:3].numpy().T / 0.2).sum(1)
    assert loss.item() == pytest.approx(-np.log(right / (right + wrong)).mean(), rel=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in contrast.project.parameters())


def test_exemplar__batch__is_contrast_of_two_looks_that_are_covered() -> None:
    """The looks differ, the border is empty in both; one image alone is refused, and two are enough."""
    exemplar, net = Exemplar(network(), (8, 8), Border("frame", 0.2)), network()
    views = exemplar.views({"images": images(0, 3)}, np.random.default_rng(0))
    for look in views.values():
        assert (look[..., 0, :] == 0).all()
        assert (look[..., 3:5, 3:5] != 0).all()
    assert (views["first"] != views["second"])[..., 2:6, 2:6].all()
    heads = [exemplar.head(pooled(net, views[name])) for name in ("first", "second")]
    assert exemplar.loss(net, views).item() == pytest.approx(nt_xent(heads[0], heads[1], 0.2).item(), rel=1e-5)
    with pytest.raises(ConfigError, match="a batch of 1 image") as raised:
        Exemplar(net, (8, 8), Border(), batch=1)
    assert "--batch 2" in raised.value.remedy
    Exemplar(net, (8, 8), Border(), batch=2)
