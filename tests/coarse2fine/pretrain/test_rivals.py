"""Layers that learn against the network by an optimiser of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coarse2fine.errors import ModelError
from coarse2fine.pretrain.loop import pretrain
from coarse2fine.pretrain.objective import Batch, Method, Rival, Views
from coarse2fine.pretrain.schedule import Schedule, groups_of, without
from coarse2fine.pretrain.state import STATE, Done, load_state, save_state

pytestmark = pytest.mark.usefixtures("no_board")


class Weight(Rival):
    """One number, learned at the rate 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([3.0]))

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.5)


class Duel:
    """The network's bias goes up, the rival's number up as well, by losses of their own."""

    def __init__(self) -> None:
        self.heads = nn.ModuleDict({"rival": Weight(), "plain": nn.Linear(1, 1)})

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        return batch

    def loss(self, network: nn.Module, views: Views) -> Mapping[str, torch.Tensor]:
        plain = self.heads["plain"](network(views["images"])).mean()
        return {"network": plain, "rival": -1000 * self.heads["rival"].value.sum()}


class Ones:
    """Images of one voxel."""

    def draw(self, count: int, generator: np.random.Generator) -> Batch:
        return {"images": torch.ones(count, 1)}


def test_pretrain__rival__learns_by_its_own_optimiser_and_nothing_else_does(tmp_path: Path) -> None:
    """Adam's first steps are its rate; the network's are as without a rival, whose large gradient is not clipped in."""
    schedule = Schedule(2, 1, rate=0.1, momentum=0.9, decay=0)
    torch.manual_seed(0)
    network, duel = nn.Linear(1, 1), Duel()
    copies = [{key: value.clone() for key, value in part.state_dict().items()} for part in (network, duel.heads)]
    done = pretrain(network, Method({"duel": duel}, {"duel": 2.0}), Ones(), schedule, tmp_path)
    assert duel.heads["rival"].value.item() == pytest.approx(3 + 2 * 0.5, rel=1e-4)
    other, plain = nn.Linear(1, 1), nn.Linear(1, 1)
    other.load_state_dict(copies[0])
    plain.load_state_dict({key.removeprefix("plain."): copies[1][key] for key in ("plain.weight", "plain.bias")})
    optimizer = torch.optim.SGD([*other.parameters(), *plain.parameters()], 0.1, momentum=0.9, nesterov=True)
    for step in range(2):
        optimizer.param_groups[0]["lr"] = schedule.rate_at(step, 0)
        optimizer.zero_grad()
        (2 * plain(other(torch.ones(1, 1))).mean()).backward()
        optimizer.step()
    assert torch.allclose(network.weight, other.weight, atol=1e-6)
    assert set(done.curve[-1].losses) == {"duel/network", "duel/rival"}


def test_load_state__two_optimisers__are_both_as_they_were(tmp_path: Path) -> None:
    """Each gets its own moments back; a state of one optimiser is refused for two with others' shapes."""
    network, heads = nn.Linear(2, 2), nn.Linear(3, 1)
    optimizers = [torch.optim.Adam(part.parameters(), 0.1) for part in (network, heads)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.rand_like(parameter)
        optimizer.step()
    save_state(tmp_path / STATE, network, heads, optimizers, Done())
    fresh = [torch.optim.Adam(part.parameters(), 0.1) for part in (network, heads)]
    load_state(tmp_path / STATE, network, heads, fresh)
    for old, new in zip(optimizers, fresh, strict=True):
        first, second = (list(optimizer.state.values()) for optimizer in (old, new))
        for one, other in zip(first, second, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    with pytest.raises(ModelError, match="of another optimiser"):
        load_state(tmp_path / STATE, network, heads, fresh[::-1])


def test_without__modules__leaves_their_parameters_out_and_groups_as_they_are() -> None:
    """Empty groups disappear, which AdamW and SGD would refuse."""
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    groups = [{**next(iter(groups_of(module))), "scale": scale} for module, scale in ((first, 0.5), (second, 1.0))]
    groups[1]["params"] = [*groups[1]["params"], first.weight]
    kept = list(without(groups, second))
    assert [(group["scale"], len(group["params"])) for group in kept] == [(0.5, 2), (1.0, 1)]
    assert list(without(groups, first, second)) == []
