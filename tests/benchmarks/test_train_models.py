"""The command that trains the benchmarks' models: real trainings of one or two steps."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import benchmark_module, blobs, import_benchmark
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from raw_data import save_case

from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import nnunet_predictor

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA", "nnUNet_compile")


script = benchmark_module("train_models")
trainer = benchmark_module("training.trainer")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "small", "-o", "x"], 2, "--start"),
        (["--adam", "0", "-o", "x"], 2, "--adam is a learning rate"),
        (["--model", "fine"], 2, "-o"),
        (["--steps", "0", "-o", "x"], 2, "--steps"),
        (["--bf16", "--device", "cuda", "-o", "x"], 2, "float16"),
        (["--data", "nowhere", "-o", "x"], 1, "has no imagesTr"),
    ],
)
def test_main__wrong_options__says_why(
    script: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    """Found before anything takes time."""
    try:
        result = script.main(["--dataset", "em", *arguments])
    except SystemExit as exit_:
        result = exit_.code
    assert result == code
    assert message in capsys.readouterr().err


def with_few_samples(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor of nnU-Net's fingerprint extractor, but for a thousand voxels instead of 100 million."""

    def few(self: DatasetFingerprintExtractor, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        self.num_foreground_voxels_for_intensitystats = 1000

    return few


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A raw data set of two tiny cases, and no test case; nnU-Net's variables are restored afterwards.

    Threads stand in for nnU-Net's worker processes, each of which would import everything anew; nothing is plotted.
    """
    threads = SimpleNamespace(Pool=ThreadPool)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: threads)
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
    monkeypatch.setattr(DatasetFingerprintExtractor, "__init__", with_few_samples(DatasetFingerprintExtractor.__init__))
    for name in FOLDERS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    folder = tmp_path / "raw" / "Dataset999_Tiny"
    for case in ("a", "b"):
        voxels = blobs((12, 40, 36), seed=ord(case))
        save_case(folder, "Tr", case, voxels.astype(np.uint8), voxels > 130)
    description = {"channel_names": {"0": "EM"}, "labels": {"background": 0, "x": 1}, "numTraining": 2}
    (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nii.gz"}))
    return folder.parent


def use_tiny_recipe(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Networks that are trained in a moment, in the place of those of a real data set."""
    recipes = import_benchmark("training.recipes")
    network = recipes.Network((8, 32, 32), (4, 8, 8), ((3, 3, 3),) * 3, ((1, 1, 1), (1, 2, 2), (2, 2, 2)), 2)
    monkeypatch.setitem(recipes.RECIPES, "em", recipes.Recipe("Dataset999_Tiny", network, network, **changes))


@pytest.mark.long
def test_main__tiny_data_set__trains_and_measures(
    script: ModuleType,
    trainer: ModuleType,
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From raw data to models that load; steps change weights, always in the same way; Dice is nnU-Net's own."""
    use_tiny_recipe(monkeypatch)
    mixed: list[int] = []
    mix = trainer.mix
    monkeypatch.setattr(trainer, "mix", lambda batch, *rest: mixed.append(len(batch["data"])) or mix(batch, *rest))
    common = ["--dataset", "em", "--data", str(raw), "--work", str(tmp_path / "work"), "--steps", "2"]
    fine, mosaic, again = (tmp_path / name for name in ("fine", "mosaic", "again"))
    assert script.main([*common, "-o", str(fine)]) == 0
    assert "Dataset999_Tiny fine: 2 steps" in capsys.readouterr().out
    assert not mixed
    for out in (mosaic, again):
        assert script.main([*common, "--model", "mosaic", "--bf16", "--start", str(fine), "-o", str(out)]) == 0
    assert mixed == [2, 2] * 2  # both steps, a batch of two
    models = before, after, twin = load_model(fine), load_model(mosaic), load_model(again)
    assert [model.patch for model in models] == [(8, 32, 32)] * 3
    pairs = [*zip(after.networks[0].parameters(), twin.networks[0].parameters(), strict=True)]
    assert all(torch.equal(new, same) for new, same in pairs)
    pairs = [*zip(before.networks[0].parameters(), after.networks[0].parameters(), strict=True)]
    assert 0 < max(float((new - old).abs().max()) for old, new in pairs) < 0.1

    assert script.main([*common, "--adam", "0.001", "-o", str(tmp_path / "adam")]) == 0
    other = load_model(tmp_path / "adam").networks[0].parameters()
    assert not all(torch.equal(*pair) for pair in zip(before.networks[0].parameters(), other, strict=True))

    capsys.readouterr()
    assert script.main(["--dataset", "em", "--data", str(raw), "--evaluate", str(fine)]) == 0
    printed = capsys.readouterr().out
    predictor = nnunet_predictor(before, tile_step=0.5, mirroring=False)
    files = raw / "Dataset999_Tiny"
    for case in ("a", "b"):
        image = sitk.ReadImage(str(files / "imagesTr" / f"{case}_0000.nii.gz"))
        true = sitk.GetArrayFromImage(sitk.ReadImage(str(files / "labelsTr" / f"{case}.nii.gz"))) > 0
        voxels = sitk.GetArrayFromImage(image)[None].astype(np.float32)
        found = predictor.predict_single_npy_array(voxels, {"spacing": [2.0, 1.0, 1.0]}) > 0
        assert f"{case}: Dice {2 * (found & true).sum() / (found.sum() + true.sum()):.3f}" in printed


@pytest.mark.alone
def test_main__killed_after_an_epoch__goes_on_where_it_was(
    script: ModuleType,
    trainer: ModuleType,
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second piece starts with the first one's weights and at its learning rate, and mirrors as the recipe says."""
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    use_tiny_recipe(monkeypatch, mirror=(0, 2))
    monkeypatch.setattr(trainer, "STEPS_PER_EPOCH", 1)
    epochs: list[int] = []
    step = PolyLRScheduler.step
    monkeypatch.setattr(PolyLRScheduler, "step", lambda self, epoch=None: epochs.append(epoch) or step(self, epoch))
    loaded: list[Path] = []
    load = trainer.load_weights
    monkeypatch.setattr(
        trainer, "load_weights", lambda network, folder, *fold: loaded.append(folder) or load(network, folder, *fold)
    )
    publish = trainer.publish

    def publish_and_die(*arguments: Any) -> None:
        publish(*arguments)
        raise KeyboardInterrupt

    out = tmp_path / "fine"
    command = ["--dataset", "em", "--data", str(raw), "--work", str(tmp_path / "work"), "--every", "1", "-o", str(out)]
    monkeypatch.setattr(trainer, "publish", publish_and_die)
    with pytest.raises(KeyboardInterrupt):
        script.main([*command, "--steps", "2"])
    monkeypatch.setattr(trainer, "publish", publish)
    first = json.loads((out / "training.json").read_text())
    assert (first["steps"], first["total"], len(first["curve"]), epochs[-1], loaded) == (1, 2, 1, 0, [])
    assert load_model(out).mirror_axes == (0, 2)

    assert script.main([*command, "--steps", "2"]) == 0
    second = json.loads((out / "training.json").read_text())
    assert (second["steps"], second["curve"][0], len(second["curve"])) == (2, first["curve"][0], 2)
    assert (epochs[-1], loaded) == (1, [out])
    capsys.readouterr()
    assert script.main([*command, "--steps", "3"]) == 1
    assert "Give --steps 2 to go on" in capsys.readouterr().err
    assert script.main([*command, "--steps", "2"]) == 0  # as the message says; nothing is left to do


@pytest.mark.long
def test_main__folds_of_derived_labels__are_trained_on_the_other_cases(
    script: ModuleType, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each half learns from the other one's cases; the labels are those that were merged; halves stay by themselves."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    recipes = import_benchmark("training.recipes")
    use_tiny_recipe(monkeypatch)
    plain = recipes.RECIPES["em"]
    derived = dataclasses.replace(plain, folder="Dataset998_Derived", source=plain.folder, merged={"merged": (1,)})
    monkeypatch.setitem(recipes.RECIPES, "em", derived)
    seen: list[Any] = []
    split = nnUNetTrainer.do_split
    monkeypatch.setattr(nnUNetTrainer, "do_split", lambda self: seen.append(split(self)) or seen[-1])
    out = tmp_path / "halves"
    common = ["--dataset", "em", "--data", str(raw), "--work", str(tmp_path / "work"), "--steps", "1"]
    for fold in ("0", "1"):
        assert script.main([*common, "--fold", fold, "-o", str(out)]) == 0
        assert json.loads((out / f"training_{fold}.json").read_text())["steps"] == 1
    assert [[*map(list, one)] for one in (seen[0], seen[-1])] == [[["b"], ["a"]], [["a"], ["b"]]]
    model = load_model(out)
    assert (model.folds, model.labels.names) == (("0", "1"), {"background": 0, "merged": 1})
    capsys.readouterr()
    assert script.main([*common, "-o", str(out)]) == 1
    assert "Write cross-fitted models to a folder of their own" in capsys.readouterr().err
    assert script.main([*common, "-o", str(tmp_path / "all")]) == 0  # as the message says
