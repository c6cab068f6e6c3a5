"""What a training reads and writes of a model folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import import_benchmark

from coarse2fine.errors import ModelError, UntrustedModelError
from coarse2fine.nnunet.loading import load_model

folders = import_benchmark("training.model_folder")


def test_strip__a_training_checkpoint__keeps_what_inference_needs(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Optimiser, log and plans are gone; weights are halved, stored once, and the loader restores their type."""
    folder = model_folder(mirror_axes=(1, 2))
    before, path = load_model(folder), folder / "fold_all" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save(checkpoint | {"optimizer_state": {"x": 1}, "command": "rm"}, path)
    folders.strip(path, tmp_path / "stripped.pth")
    stripped = torch.load(tmp_path / "stripped.pth", weights_only=True)
    assert set(stripped) == {
        "network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"
    }  # fmt: skip
    assert stripped["init_args"] == {"configuration": "3d_fullres"}
    assert stripped["trainer_name"] == "nnUNetTrainer"
    assert {tensor.dtype for tensor in stripped["network_weights"].values()} == {torch.float16}
    (tmp_path / "stripped.pth").replace(path)
    after = load_model(folder)
    assert after.mirror_axes == (1, 2)
    for old, new in zip(before.networks[0].parameters(), after.networks[0].parameters(), strict=True):
        assert new.dtype == torch.float32
        assert torch.allclose(old, new, rtol=1e-3, atol=1e-6)


class Hostile:
    """Would run a command when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def test_strip__hostile_checkpoint__is_refused_and_nothing_is_written(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even an object in a key that stripping would drop is never unpickled."""
    path = model_folder() / "fold_all" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | {"logging": Hostile()}, path)
    with pytest.raises(UntrustedModelError):
        folders.strip(path, tmp_path / "stripped.pth")
    assert "unpickled" not in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


def test_load_weights__another_network__is_an_error(model_folder: Callable[..., Path]) -> None:
    """The message names the folder and a parameter."""
    folder = model_folder()
    network = load_model(model_folder(channels=2)).networks[0]
    with pytest.raises(ModelError, match=r"holds another network.*weight") as caught:
        folders.load_weights(network, folder)
    assert str(folder) in str(caught.value)


def test_load_weights__other_labels__all_but_the_output_layers(model_folder: Callable[..., Path]) -> None:
    """These stay as they were, and the caller is told; with the same labels everything is loaded."""
    labels = {"background": 0, "one": 1, "two": 2}
    start, other = model_folder(seed=1, labels=labels), load_model(model_folder(seed=1, labels=labels)).networks[0]
    network = load_model(model_folder(seed=2)).networks[0]
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    assert not folders.load_weights(network, start)
    for name, weight in network.state_dict().items():
        expected = before[name] if "seg_layers" in name else other.state_dict()[name]
        assert torch.equal(weight, expected), name
    assert any(not torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert folders.load_weights(network, model_folder(seed=3))


def test_progress__training_that_starts_from_another__goes_on_with_its_curve(tmp_path: Path) -> None:
    """Steps of the curve count from the first training on; its own steps and seconds begin anew."""
    start, out = tmp_path / "start", tmp_path / "out"
    first = folders.Progress.of(start, 100).after(50, 0.1, 7.0).after(50, 0.2, 7.0)
    start.mkdir()
    (start / "training.json").write_text(json.dumps(asdict(first)))
    second = folders.Progress.of(out, 200, start=start).after(50, 0.3, 5.0)
    assert second == folders.Progress(50, 200, 5.0, ((50, 0.1), (100, 0.2), (150, 0.3)), 100)
    out.mkdir()
    (out / "training.json").write_text(json.dumps(asdict(second)))
    assert folders.Progress.of(out, 200, start=start) == second
    assert folders.Progress.of(tmp_path / "third", 50, start=out).before == 150
    assert folders.Progress.of(tmp_path / "third", 50).curve == ()
