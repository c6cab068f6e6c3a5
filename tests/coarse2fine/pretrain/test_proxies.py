"""Proxy tasks as users get them: by name, learned by the loop, above chance on images that were not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coarse2fine.networks.vit import ViT, ViTShape
from coarse2fine.nnunet.loading import load_plans, new_network
from coarse2fine.pretrain.loop import pretrain
from coarse2fine.pretrain.methods import Task, method_of
from coarse2fine.pretrain.objective import Batch
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.weights import tensors_of

pytestmark = pytest.mark.usefixtures("no_board")

SHAPE, FLAT = (16, 24, 24), (24, 24)


@dataclass(frozen=True)
class Blobs:
    """A bright blob that is never in the middle, on waves that are each image's own."""

    shape: tuple[int, ...]

    def draw(self, count: int, generator: np.random.Generator) -> Batch:
        places = np.meshgrid(*[np.linspace(-1, 1, size) for size in self.shape], indexing="ij")
        images = np.zeros((count, 1, *self.shape), np.float32)
        for image in images[:, 0]:
            middle = np.linspace(0.2, 0.6, len(places)) + generator.normal(0, 0.05, len(places))
            image += 3 * np.exp(-2 * sum((at - mid) ** 2 for at, mid in zip(places, middle, strict=True)))
            image += np.sin(
                sum(pace * at for pace, at in zip(generator.normal(0, 5, len(places)), places, strict=True))
            )
        return {"images": torch.from_numpy(images)}


@pytest.fixture(scope="module")
def network_of(model_folder: Callable[..., Path]) -> Callable[[], nn.Module]:
    model = load_plans(model_folder() / "plans.json", "3d_fullres")
    return lambda: new_network(model, 1, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["rotation", "jigsaw", "exemplar"])
def test_pretrain__proxy_task__is_learned_above_chance(name: str, tmp_path: Path) -> None:
    """A tiny transformer's loss on other images ends well below that of guessing."""
    network = ViT(ViTShape(1, FLAT, (4, 4), 32, 2, 2))
    own = {"rotation": {}, "jigsaw": {"jigsaw.orders": "4"}, "exemplar": {"exemplar.least": "0.7"}}[name]
    schedule = Schedule(150, 16, rate=3e-3, optimizer="adamw", decay=0.0, warm_up=0.1)
    method = method_of(Task(network, FLAT, Settings(schedule, name, own=own)))
    pretrain(network, method, Blobs(FLAT), schedule, tmp_path)
    held = Blobs(FLAT).draw(64, np.random.default_rng(99))
    with torch.no_grad():
        loss = method.losses(network.eval(), held, np.random.default_rng(5))[name].item()
    assert loss < 0.75 * {"rotation": np.log(4), "jigsaw": np.log(4), "exemplar": np.log(127)}[name]


def test_pretrain__all_proxy_tasks_in_3d__teach_nnunets_encoder_and_leave_the_decoder(
    network_of: Callable[[], nn.Module], tmp_path: Path
) -> None:
    """All tensors of the former change but biases before a norm, none of the latter; losses are near guessing's."""
    network, schedule = network_of(), Schedule(2, 4, rate=1e-2)
    method = method_of(Task(network, SHAPE, Settings(schedule, "rotation+jigsaw+exemplar")))
    before = {key: value.clone() for key, value in tensors_of(network).items()}
    done = pretrain(network, method, Blobs(SHAPE), schedule, tmp_path)
    changed = {key for key, value in tensors_of(network).items() if not torch.equal(value, before[key])}
    assert {key.split(".")[0] for key in changed} == {"encoder"}
    assert {key for key in before if key.startswith("encoder") and key.endswith("conv.weight")} <= changed
    guessing = {"rotation": np.log(8), "jigsaw": np.log(100), "exemplar": np.log(7)}
    assert done.curve[-1].losses == pytest.approx(guessing, rel=0.3)


def test_method_of__same_seed__gives_heads_the_same_weights(network_of: Callable[[], nn.Module]) -> None:
    """And leaves PyTorch's own random numbers alone."""
    state = torch.get_rng_state()
    heads = [
        method_of(Task(network_of(), SHAPE, Settings(Schedule(1, 2, seed), "rotation+jigsaw"))).heads.state_dict()
        for seed in (3, 3, 4)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])
    assert not all(torch.equal(heads[0][key], heads[2][key]) for key in heads[0])
