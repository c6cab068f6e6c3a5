"""Coarse models, trained by nnU-Net's trainer on tiny cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.losses import TverskyLoss
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from coarse2fine.coarse.heatmap import CoarseStage, predict_heatmap
from coarse2fine.coarse_training import train as train_module
from coarse2fine.coarse_training.job import EPOCH, PROGRESS, Job
from coarse2fine.coarse_training.preprocess import coarse_case
from coarse2fine.coarse_training.train import Effort, TrainingCase, train_models
from coarse2fine.coarse_training.trainer import FALSE, MISSED, Tversky, use_bfloat16
from coarse2fine.config.schema import CoarseConfig
from coarse2fine.errors import ModelError
from coarse2fine.io.volume import Grid, Volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import view_volume


def ball_case(seed: int) -> tuple[Volume, np.ndarray]:
    """A noisy volume with a bright ball, and its labels."""
    rng = np.random.default_rng(seed)
    shape, centre = (24, 32, 32), rng.uniform(8, 16, 3)
    labels = (np.linalg.norm(np.indices(shape).reshape(3, -1).T - centre, axis=1) < 5).reshape(shape).astype(np.uint8)
    image = (rng.normal(0, 20, shape) + 300.0 * labels + 100).astype(np.int16)
    return Volume((image,), Grid(shape, (1.0, 1.0, 1.0)), f"ball{seed}"), labels


def train(fine: Model, work: Path, groups: dict[str, list[str]], steps: int = EPOCH) -> dict[str, Model]:
    cases = [TrainingCase(f"ball{seed}", seed, lambda seed=seed: ball_case(seed)) for seed in range(3)]
    return train_models(groups, cases, fine, Effort(600.0, steps), work, lambda stage, done, total: None)


@pytest.fixture(scope="module")
def fine(model_folder: Callable[..., Path]) -> Model:
    return load_model(model_folder(spacing=(1.0, 1.0, 1.0)))


@pytest.mark.parametrize("background", [False, True])
def test_tversky__random_outputs__is_monais(background: bool) -> None:
    """Over all patches of a batch, with and without the first output."""
    rng = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 3, 4, 5, 6, generator=rng)
    labels = torch.randint(0, 3, (2, 1, 4, 5, 6), generator=rng)
    theirs = TverskyLoss(background, to_onehot_y=True, softmax=True, alpha=FALSE, beta=MISSED, batch=True)

    ours = Tversky(lambda x: torch.softmax(x, 1), background)(outputs, labels)

    assert float(ours) + 1 == pytest.approx(float(theirs(outputs, labels)), abs=1e-4)


def test_use_bfloat16__a_step__computes_in_it_but_for_the_loss() -> None:
    """The network's outputs are rounded, and what the loss gets of them is in single precision."""
    network, seen = torch.nn.Conv3d(1, 2, 3), list[torch.dtype]()

    class Trainer:
        device = torch.device("cpu")

        def loss(self, outputs: list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
            seen.append(outputs[0].dtype)
            return (outputs[0] - targets).square().mean()

        def train_step(self) -> None:
            output = network(torch.ones(1, 1, 4, 4, 4))
            seen.append(output.dtype)
            self.loss([output], torch.zeros(1)).backward()

        validation_step = train_step

    trainer = Trainer()
    use_bfloat16(trainer)
    trainer.train_step()
    trainer.validation_step()
    assert seen == [torch.bfloat16, torch.float32] * 2
    assert network.weight.grad is not None
    assert network.weight.grad.dtype == torch.float32


@pytest.mark.long
def test_train_models__two_groups__find_balls_that_they_have_not_seen(fine: Model, tmp_path: Path) -> None:
    """Each model sees its own cases only, finds the ball of another one, and nnU-Net can run its folder."""
    models = train(fine, tmp_path, {"0": ["ball0", "ball1"], "1": ["ball1", "ball2"]}, steps=2 * EPOCH)

    volume, labels = ball_case(7)
    for model in models.values():
        _, ball = coarse_case(volume, labels, fine, model.spacing)
        heatmap = predict_heatmap(CoarseStage(model, fine, CoarseConfig()), view_volume(volume, model)).heatmap
        assert heatmap[ball > 0].mean() > heatmap[ball == 0].mean() + 0.3
        predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model.folder), ("all",), "checkpoint_final.pth")
    first, second = (model.networks[0].state_dict() for model in models.values())
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["regions", "ignore"])
def test_train_models__regions_or_voxels_to_ignore__are_learned_as_nnunet_does(
    model_folder: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """Regions have outputs of their own; where labels are to be ignored, half of a ball is enough to learn from."""
    names = {"background": 0, "ball": [1, 2], "core": 2} if kind == "regions" else {"background": 0, "ball": 1}
    order = (1, 2) if kind == "regions" else None
    extra = {} if kind == "regions" else {"ignore": 2}
    fine = load_model(model_folder(labels=names | extra, regions_class_order=order, spacing=(1.0, 1.0, 1.0)))

    def case(seed: int) -> tuple[Volume, np.ndarray]:
        volume, labels = ball_case(seed)
        other = np.arange(labels.shape[2]) >= np.argwhere(labels)[:, 2].mean()
        labels[(labels > 0) & other if kind == "regions" else np.broadcast_to(other, labels.shape)] = 2
        return volume, labels

    cases = [TrainingCase(f"ball{seed}", seed, lambda seed=seed: case(seed)) for seed in range(3)]
    effort = Effort(600.0, 3 * EPOCH)
    model = train_models({"kit": [one.name for one in cases]}, cases, fine, effort, tmp_path, lambda *told: None)["kit"]

    assert (model.labels.regions, model.labels.ignore) == (fine.labels.regions, fine.labels.ignore)
    volume, whole = ball_case(7)
    _, ball = coarse_case(volume, whole, fine, model.spacing)
    heatmap = predict_heatmap(CoarseStage(model, fine, CoarseConfig()), view_volume(volume, model)).heatmap
    assert heatmap[ball > 0].mean() > heatmap[ball == 0].mean() + 0.3  # nothing of a ball is background


def test_train_models__case_of_no_group__is_not_looked_at(
    fine: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a promise is calibrated on must have no say, not even about voxel sizes."""
    looked: list[int] = []

    def case(seed: int) -> TrainingCase:
        return TrainingCase(f"ball{seed}", seed, lambda: (looked.append(seed), ball_case(seed))[1])

    def run(jobs: Sequence[Job], workers: int, progress: object) -> None:
        looked.append(-1)
        assert [job.cases for job in jobs] == [("ball0",)]
        assert 3 < jobs[0].foreground < 10  # a ball with a diameter of ten in 24 x 32 x 32 voxels, pooled

    monkeypatch.setattr(train_module, "_run", run)
    monkeypatch.setattr(train_module, "_publish", lambda job: None)
    monkeypatch.setattr(train_module, "load_model", lambda folder, device: fine)
    train_models({"kit": ["ball0"]}, [case(0), case(1)], fine, Effort(1.0), tmp_path, lambda *told: None)
    assert looked == [0, 0, -1]


def test_train_models__other_cases_or_more_time__trains_again(
    fine: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is there is taken only if it was trained on these cases, for as long, with these random numbers."""
    ran: list[tuple[str, ...]] = []

    def publish(job: Job) -> None:
        checkpoint = job.work / "model" / "fold_all" / "checkpoint_final.pth"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.touch()

    monkeypatch.setattr(train_module, "_run", lambda jobs, workers, progress: ran.extend(job.cases for job in jobs))
    monkeypatch.setattr(train_module, "_publish", publish)
    monkeypatch.setattr(train_module, "load_model", lambda folder, device: fine)
    cases = [TrainingCase(f"ball{seed}", seed, lambda seed=seed: ball_case(seed)) for seed in range(3)]

    def again(*names: str, seconds: float = 10.0, seed: int = 0) -> int:
        ran.clear()
        rest = [case.name for case in cases]  # so that the same cases are preprocessed
        train_models(
            {"fold": names, "kit": rest}, cases, fine, Effort(seconds, seed=seed), tmp_path, lambda *told: None
        )
        return len(ran)

    assert again("ball0", "ball1") == 2
    assert again("ball0", "ball1") == 0
    state = tmp_path / "fold" / "state.pt"
    state.touch()
    assert again("ball0", "ball2") == 1
    assert not state.exists()
    state.touch()
    assert again("ball0", "ball2", seconds=20.0) == 2
    assert state.exists()  # it goes on
    assert again("ball0", "ball2", seconds=20.0, seed=1) == 2
    assert not state.exists()

    state.touch()
    description = tmp_path / "fold" / "job.json"
    told = json.loads(description.read_text())
    del told["rate"]  # as if it had begun before trainings had one, with an optimiser of another kind
    description.write_text(json.dumps(told))
    assert again("ball0", "ball2", seconds=20.0, seed=1) == 1
    assert not state.exists()


@pytest.mark.long
def test_train_models__cut_off__goes_on_with_what_was_done(fine: Model, tmp_path: Path) -> None:
    """A second call trains only what is left; other cases or another fine model begin anew."""
    names = ["ball0", "ball1"]
    train(fine, tmp_path, {"0": names})
    checkpoint = tmp_path / "0" / "model" / "fold_all" / "checkpoint_final.pth"
    before = checkpoint.stat().st_mtime_ns
    train(fine, tmp_path, {"0": names})
    assert checkpoint.stat().st_mtime_ns == before

    optimizer = torch.load(tmp_path / "0" / "state.pt", weights_only=True)["optimizer"]
    assert optimizer["param_groups"][0]["amsgrad"]
    assert all("exp_avg" in state for state in optimizer["state"].values())  # AdamW's
    checkpoint.unlink()  # as if it had been cut off after its first epoch
    train(fine, tmp_path, {"0": names}, steps=2 * EPOCH)
    assert json.loads((tmp_path / "0" / PROGRESS).read_text())["steps"] == 2 * EPOCH
    assert len([*(tmp_path / "0" / "results").rglob("training_log*")]) == 2  # each a piece of one epoch


@pytest.mark.long
def test_train_models__training_fails__names_the_log(
    fine: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong is in one line, and the rest in the log that it names."""
    monkeypatch.setattr(train_module, "write_case", lambda *case: None)  # as if somebody had removed the data
    with pytest.raises(ModelError, match=r"ended with code 1: \w+Error") as error:
        train(fine, tmp_path, {"0": ["ball0"]})
    assert str(tmp_path / "0" / "log.txt") in str(error.value)
