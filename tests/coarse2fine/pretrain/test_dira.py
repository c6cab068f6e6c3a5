"""DiRA: its parts by hand, alone and together, going on after a kill, and that it restores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coarse2fine.errors import ConfigError
from coarse2fine.networks.features import pooled
from coarse2fine.networks.vit import ViT, ViTShape, new_vit
from coarse2fine.nnunet.loading import load_plans, new_network
from coarse2fine.pretrain.dira import PARTS, Dira, Shares
from coarse2fine.pretrain.loop import pretrain
from coarse2fine.pretrain.methods import Task, method_of
from coarse2fine.pretrain.objective import Batch, Method
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.state import Done
from coarse2fine.pretrain.weights import tensors_of

pytestmark = pytest.mark.usefixtures("no_board")

PATCH, FLAT = (16, 24, 24), (16, 24)
SCHEDULE = Schedule(steps=4, batch=2, piece=1, rate=1e-3, momentum=0.9)


@pytest.fixture(scope="module")
def unet(model_folder: Callable[..., Path]) -> Callable[[], nn.Module]:
    model = load_plans(model_folder() / "plans.json", "3d_fullres")
    return lambda: new_network(model, 1, 0)


def vit() -> ViT:
    return new_vit(ViTShape(1, FLAT, (4, 4), 24, 2, 2), 0)


@dataclass(frozen=True)
class Noise:
    """Images of noise."""

    shape: tuple[int, ...]

    def draw(self, count: int, generator: np.random.Generator) -> Batch:
        return {"images": torch.from_numpy(generator.normal(size=(count, 1, *self.shape)).astype(np.float32))}


def method(network: nn.Module, name: str = "dira", schedule: Schedule = SCHEDULE, **own: str) -> Method:
    image = FLAT if isinstance(network, ViT) else PATCH
    settings = Settings(schedule, name, own={f"{name}.{key}": value for key, value in own.items()})
    return method_of(Task(network, image, settings))


def dira(network: nn.Module, name: str = "dira", **own: str) -> Dira:
    found = method(network, name, **own).objectives["dira"]
    assert isinstance(found, Dira)
    return found


def batch(patch: tuple[int, ...]) -> Batch:
    return Noise(patch).draw(3, np.random.default_rng(1))


@pytest.mark.parametrize("flat", [False, True])
def test_loss__all_parts__are_those_of_the_paper_times_their_weights(flat: bool, unet: Callable[[], nn.Module]) -> None:
    """nnU-Net's network restores by its own decoder, a transformer by a linear layer; 2D and 3D have other weights."""
    network = vit() if flat else unet()
    network.eval()  # so that the queue stays
    objective = dira(network)
    contrast, rival = objective.contrast, objective.discriminator
    assert contrast is not None
    assert rival is not None
    contrast.queue[:4] = F.normalize(torch.rand(4, 128), dim=1)
    contrast.seen.fill_(4)
    views = objective.views(batch(FLAT if flat else PATCH), np.random.default_rng(0))
    with torch.no_grad():
        losses = objective.loss(network, views)
        if flat:
            rows = objective.paint(network(views["first"])[:, 1:]).numpy().reshape(3, 4, 6, 4, 4)
            restored = torch.from_numpy(rows.transpose(0, 1, 3, 2, 4).reshape(3, 1, *FLAT))
        else:
            restored = network(views["first"])
        queries = F.normalize(contrast.project(pooled(network, views["first"])), dim=1)
        keys = F.normalize(contrast.slow_project(pooled(contrast.slow_encoder, views["second"])), dim=1)
        logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ contrast.queue[:4].T], 1) / 0.2
        expected = {
            "discriminative": -logits.log_softmax(1)[:, 0].mean(),
            "restorative": (10 if flat else 100) * ((restored - views["clean"]) ** 2).mean(),
            "adversarial": (0.001 if flat else 1) * ((rival(restored) - 1) ** 2).mean(),
            "discriminator": ((rival(views["clean"]) - 1) ** 2).mean() / 2 + (rival(restored) ** 2).mean() / 2,
        }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-3
    )


def test_views__three_images__are_the_clean_crop_spoilt_and_another_look(unet: Callable[[], nn.Module]) -> None:
    """Where pictures are left undistorted, the first look is the clean crop in another brightness."""
    objective = dira(vit())
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 1, *FLAT)).astype(np.float32))
    views = objective.views({"images": images}, np.random.default_rng(0))
    pairs = [
        (np.corrcoef(clean.ravel(), first.ravel())[0, 1], np.corrcoef(clean.ravel(), second.ravel())[0, 1])
        for clean, first, second in zip(*(views[name].numpy() for name in ("clean", "first", "second")), strict=True)
    ]
    alike, other = np.array(pairs).T
    assert 0.25 < (alike > 0.98).mean() < 0.6  # left alone, or blocks of one voxel swapped
    assert (alike < 0.9).mean() > 0.3
    assert (other < 0.9).mean() > 0.95


@pytest.mark.parametrize("part", PARTS)
def test_method_of__one_part__is_alone_and_has_no_heads_of_others(part: str, unet: Callable[[], nn.Module]) -> None:
    """In 3D with nnU-Net's network and in 2D with a transformer; its weight is 1."""
    heads = {"discriminative": {"contrast"}, "restorative": set(), "adversarial": {"discriminator"}}[part]
    for network in (unet(), vit()):
        objective = dira(network, f"dira-{part}")
        views = objective.views(batch(FLAT if isinstance(network, ViT) else PATCH), np.random.default_rng(0))
        losses = set(objective.loss(network, views))
        assert losses == {part} | ({"discriminator"} if part == "adversarial" else set())
        assert {name.split(".")[0] for name, _ in objective.heads.named_parameters()} - {"paint"} == heads
        assert getattr(objective.shares, part) == 1


def test_method_of__weights_and_options__are_those_that_were_given() -> None:
    """First stage without discriminator, other weights, a queue no longer than what is drawn."""
    assert dira(vit()).shares == Shares(1, 10, 0.001)
    assert dira(vit(), "dira-first").shares == Shares(1, 10, 0)
    chosen = dira(vit(), discriminative="0", restorative="2", form="log", rate="0.01")
    assert (chosen.shares, chosen.contrast, chosen.form) == (Shares(0, 2, 0.001), None, "log")
    assert chosen.discriminator is not None
    assert chosen.discriminator.rate == 0.01
    for queue, length in (("5", 5), ("100", 8)):
        contrast = dira(vit(), queue=queue).contrast
        assert contrast is not None
        assert len(contrast.queue) == length
    with pytest.raises(ConfigError, match="the weights of DiRA's parts are 0, 0, 0") as raised:
        dira(vit(), discriminative="0", restorative="0", adversarial="0")
    assert "dira.discriminative=1" in raised.value.remedy
    dira(vit(), discriminative="1", restorative="0", adversarial="0")


@pytest.mark.parametrize("flat", [pytest.param(False, marks=pytest.mark.long), True])
def test_pretrain__cut_off__goes_on_with_slow_encoder_queue_and_discriminator(
    flat: bool, unet: Callable[[], nn.Module], tmp_path: Path
) -> None:
    """To the same weights of the network and of all heads."""

    class StopError(Exception):
        """Ends a training."""

    def stop(done: Done) -> None:
        if done.step == 2:
            raise StopError

    def train(folder: str, told: Callable[[Done], None] = lambda done: None) -> dict[str, torch.Tensor]:
        network = vit() if flat else unet()
        learned = method(network, queue="3")
        (tmp_path / folder).mkdir(exist_ok=True)
        pretrain(network, learned, Noise(FLAT if flat else PATCH), SCHEDULE, tmp_path / folder, told)
        return tensors_of(nn.ModuleDict({"network": network, "heads": learned.heads}))

    whole = train("whole")
    with pytest.raises(StopError):
        train("cut", stop)
    rest = train("cut")
    assert whole.keys() == rest.keys()
    assert {"queue", "seen"} <= {name.split(".")[-1] for name in whole}
    for name, tensor in whole.items():
        assert torch.allclose(rest[name], tensor, rtol=1e-4, atol=1e-6), name


def test_pretrain__discriminator__learns_by_its_rate_and_the_slow_encoder_follows(tmp_path: Path) -> None:
    """The discriminator's weights move by Adam's 2e-4 a step, the slow copy by a thousandth of the way."""
    network = vit()
    schedule = Schedule(1, 2, rate=0.1)
    learned = method(network, schedule=schedule)
    objective = learned.objectives["dira"]
    assert isinstance(objective, Dira)
    rival, contrast = objective.discriminator, objective.contrast
    assert rival is not None
    assert contrast is not None
    before = {name: value.clone() for name, value in rival.named_parameters()}
    start = {name: value.clone() for name, value in network.named_parameters()}
    pretrain(network, learned, Noise(FLAT), schedule, tmp_path)
    moved = torch.cat([(value - before[name]).abs().ravel() for name, value in rival.named_parameters()])
    assert moved.max().item() == pytest.approx(2e-4, rel=0.01)
    assert all(torch.equal(value, start[name]) for name, value in contrast.slow_encoder.named_parameters())
    objective.loss(network, objective.views(batch(FLAT), np.random.default_rng(0)))
    for name, value in contrast.slow_encoder.named_parameters():
        assert torch.allclose(value, 0.999 * start[name] + 0.001 * network.get_parameter(name), atol=1e-6)
