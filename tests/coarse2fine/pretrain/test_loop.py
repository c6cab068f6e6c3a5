"""The loop: it learns, and goes on where it was cut off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coarse2fine.errors import C2FError, ModelError
from coarse2fine.nnunet.loading import load_plans, new_network
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain import loop, methods
from coarse2fine.pretrain.crops import Crops
from coarse2fine.pretrain.loop import CURVE, pretrain
from coarse2fine.pretrain.methods import Task
from coarse2fine.pretrain.objective import Method
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.state import STATE, Done
from coarse2fine.pretrain.weights import tensors_of

pytestmark = pytest.mark.usefixtures("no_board")

SCHEDULE = Schedule(steps=8, batch=2, piece=2, rate=1e-3)


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., Path]) -> Model:
    return load_plans(model_folder() / "plans.json", "3d_fullres")


def waves(seed: int, count: int = 1) -> tuple[np.ndarray, ...]:
    """Smooth volumes, of which a part tells what the rest looks like."""
    generator = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.arange(size) for size in (16, 24, 24)], indexing="ij")
    phases = generator.uniform(0, 6, (count, 3))
    return tuple(
        (np.sin(z / 4 + a) + np.sin(y / 5 + b) + np.sin(x / 5 + c))[None].astype(np.float32) for a, b, c in phases
    )


def method_of(model: Model, **options: object) -> Method:
    settings = Settings(SCHEDULE, block=4, **options)  # type: ignore[arg-type]
    return methods.method_of(Task(new_network(model, 1, 0), model.patch, settings))


def train(
    model: Model, folder: Path, schedule: Schedule = SCHEDULE, told: Callable[[Done], None] = lambda done: None
) -> nn.Module:
    folder.mkdir(exist_ok=True)
    network = new_network(model, 1, 0)
    pretrain(network, method_of(model), Crops(waves(0, 2), model.patch), schedule, folder, told)
    return network


def test_pretrain__two_tiny_volumes__lowers_the_loss_on_a_third(model: Model, tmp_path: Path) -> None:
    """On held-out crops with fixed masks, the network paints better than before the first step, and than zero."""
    held, method = Crops(waves(9), model.patch), method_of(model, ratio=0.5)

    def loss(network: nn.Module) -> float:
        generator = np.random.default_rng(77)
        with torch.no_grad():
            return float(method.losses(network.eval(), held.draw(8, generator), generator)["mae"])

    network, schedule = new_network(model, 1, 0), Schedule(steps=60, batch=2, rate=0.03, momentum=0.9)
    before = loss(network)
    pretrain(network, method, Crops(waves(0, 2), model.patch), schedule, tmp_path)
    assert loss(network) < 0.5 * before
    assert loss(network) < 0.85 * loss(nn.Identity())  # which leaves holes as they are


def test_pretrain__cut_off__goes_on_to_the_same_weights_and_curve(model: Model, tmp_path: Path) -> None:
    """Stopped after a piece, and in the middle of the next one."""
    whole = tensors_of(train(model, tmp_path / "whole"))

    class StopError(Exception):
        """Ends a training."""

    def stop(done: Done) -> None:
        if done.step == 4:
            raise StopError

    with pytest.raises(StopError):
        train(model, tmp_path / "cut", told=stop)
    with pytest.MonkeyPatch.context() as patch:
        step = loop._Learner.step

        def stopping(learner: loop._Learner, index: int, rate: float) -> dict[str, float]:
            if index == 5:
                raise StopError
            return step(learner, index, rate)

        patch.setattr(loop._Learner, "step", stopping)
        with pytest.raises(StopError):
            train(model, tmp_path / "cut")
    told: list[int] = []
    rest = tensors_of(train(model, tmp_path / "cut", told=lambda done: told.append(done.step)))
    assert told == [6, 8]
    assert all(torch.allclose(rest[name], tensor, rtol=1e-5, atol=1e-7) for name, tensor in whole.items())
    curves = [json.loads((tmp_path / name / CURVE).read_text()) for name in ("whole", "cut")]
    assert [point["step"] for point in curves[1]] == [2, 4, 6, 8]
    for first, second in zip(*curves, strict=True):
        assert first["losses"]["mae"] == pytest.approx(second["losses"]["mae"], rel=1e-5)


def test_pretrain__another_seed__gives_other_weights(model: Model, tmp_path: Path) -> None:
    """And does not touch PyTorch's own random numbers."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (
        tensors_of(train(model, tmp_path / str(seed), Schedule(2, 1, seed=seed, rate=1e-3))) for seed in (0, 1)
    )
    assert torch.equal(torch.rand(1), expected)
    assert not all(torch.equal(first[name], second[name]) for name in first)


def test_pretrain__state_of_another_network__is_refused_by_its_first_parameter(
    model: Model, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Nothing is begun with half of the weights; the remedy works."""
    other = load_plans(model_folder(channels=2) / "plans.json", "3d_fullres")
    folder = tmp_path / "other"
    folder.mkdir()
    pair = tuple(np.concatenate([wave, wave]) for wave in waves(0))
    pretrain(new_network(other, 2, 0), method_of(other), Crops(pair, other.patch), SCHEDULE, folder)
    words = r"state\.safetensors is of another network: encoder\.stages\.0\.0\.convs\.0\.conv\.weight is \(4, 2, "
    with pytest.raises(ModelError, match=words) as raised:
        train(model, folder)
    assert "delete this file" in raised.value.remedy
    (folder / STATE).unlink()
    train(model, folder)
    (folder / STATE).write_bytes(b"{}")
    with pytest.raises(ModelError, match="is damaged or no safetensors file"):
        train(model, folder)


def test_pretrain__loss_that_is_no_number__ends_and_a_lower_rate_helps(model: Model, tmp_path: Path) -> None:
    """Instead of weights that are no numbers."""
    with pytest.raises(C2FError, match=r"the loss is (nan|inf) at step") as raised:
        train(model, tmp_path / "fast", Schedule(steps=8, batch=1, rate=1e30))
    assert "--rate" in raised.value.remedy
    train(model, tmp_path / "slow", Schedule(steps=2, batch=1, rate=1e-3))


def test_rate_at__steps_and_time__falls_with_whichever_is_nearer_to_its_end() -> None:
    """nnU-Net's polynomial."""
    schedule = Schedule(steps=100, batch=1, rate=0.01, seconds=10)
    assert schedule.rate_at(0, 0) == 0.01
    assert schedule.rate_at(50, 1) == pytest.approx(0.01 * 0.5**0.9)
    assert schedule.rate_at(10, 8) == pytest.approx(0.01 * 0.2**0.9)
    assert schedule.rate_at(50, 11) == 0


def test_pretrain__time_is_up__ends_after_the_piece(model: Model, tmp_path: Path) -> None:
    """And does not go on later."""
    told: list[int] = []
    for _ in range(2):
        train(model, tmp_path, Schedule(steps=8, batch=1, piece=2, seconds=1e-6), lambda done: told.append(done.step))
    assert told == [2]


def test_pretrain__constant_volume_without_texture__stays_finite(model: Model, tmp_path: Path) -> None:
    """Instance norm of a patch without variance makes no numbers that are none."""
    network = new_network(model, 1, 0)
    flat = (np.zeros((1, 16, 24, 24), np.float32),)
    pretrain(network, method_of(model, norm_pix=True), Crops(flat, model.patch), SCHEDULE, tmp_path)
    assert all(tensor.isfinite().all() for tensor in tensors_of(network).values())
