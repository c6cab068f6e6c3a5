"""The recipe of the benchmarks' models: mosaics and plans on arrays, and a real training of one step."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections import deque
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from conftest import blobs, import_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from coarse2fine.errors import ModelError, UntrustedModelError
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import nnunet_predictor

SHAPE, SLOT = (8, 32, 48), (4, 16, 24)
SCALES = [[1, 1, 1], [1, 0.5, 0.5], [0.5, 0.25, 0.25]]
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA", "nnUNet_compile")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The recipe as a module."""
    return import_benchmark("train_models")


def numbered(script: ModuleType, count: int, seed: int = 0) -> list[Any]:
    """Patches in which every voxel has a number of its own, with random labels, downsampled by nnU-Net's transform."""
    generator, patches = torch.Generator().manual_seed(seed), []
    for index in range(count):
        image = torch.arange(math.prod(SHAPE), dtype=torch.float64).reshape(1, *SHAPE) + index * math.prod(SHAPE)
        labels = (torch.rand((1, *SHAPE), generator=generator) < 0.1).to(torch.int16)
        targets = DownsampleSegForDSTransform(SCALES)(image=image, segmentation=labels)["segmentation"]
        patches.append(script.Patch(image, targets))
    return patches


def cells(array: torch.Tensor) -> list[torch.Tensor]:
    """The eight slots of a patch."""
    halves = [array[0].split(SLOT[0], 0)]
    return [part for z in halves[0] for y in z.split(SLOT[1], 1) for part in y.split(SLOT[2], 2)]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), foreground=st.sampled_from([0.0, 0.5, 1.0]))
def test_make_mosaic__numbered_voxels__slots_are_crops_and_labels_share_their_place(
    script: ModuleType, seed: int, foreground: float
) -> None:
    """Each slot is a crop of one patch, found by its voxels' numbers; the labels there are that crop's labels."""
    patches = numbered(script, 3, seed)
    mosaic = script.make_mosaic(patches, SLOT, np.random.default_rng(seed), foreground)
    labels, total = torch.cat([patch.targets[0] for patch in patches]), math.prod(SHAPE)
    for slot, found in zip(cells(mosaic.image), cells(mosaic.targets[0]), strict=True):
        index, place = divmod(int(slot[0, 0, 0]), total)
        start = np.unravel_index(place, SHAPE)
        window = tuple(slice(low, low + size) for low, size in zip(start, SLOT, strict=True))
        assert torch.equal(slot, patches[index].image[0][window])
        assert torch.equal(found, labels[index][window])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_make_mosaic__deep_supervision__targets_are_those_of_the_mosaic(script: ModuleType, seed: int) -> None:
    """Labels mosaicked at each scale equal what nnU-Net makes of the mosaic at full resolution."""
    mosaic = script.make_mosaic(numbered(script, 2, seed), SLOT, np.random.default_rng(seed))
    expected = DownsampleSegForDSTransform(SCALES)(image=mosaic.image, segmentation=mosaic.targets[0])["segmentation"]
    assert len(mosaic.targets) == len(SCALES)
    for found, wanted in zip(mosaic.targets, expected, strict=True):
        assert found.dtype == torch.int16
        assert torch.equal(found, wanted)


def test_make_mosaic__share_of_foreground__decides_how_many_crops_hold_the_object(script: ModuleType) -> None:
    """With one labelled voxel per patch, all crops hold it at 1, about half at 0.5, and only chance ones at 0."""
    patches = numbered(script, 2)
    for patch, place in zip(patches, ((0, 5, 3, 40), (0, 2, 30, 7)), strict=True):
        for target in patch.targets:
            target.zero_()
        patch.targets[0][place] = 1
    shares = []
    for foreground in (0.0, 0.5, 1.0):
        generator = np.random.default_rng(0)
        mosaics = [script.make_mosaic(patches, SLOT, generator, foreground) for _ in range(20)]
        shares.append(np.mean([bool(slot.any()) for mosaic in mosaics for slot in cells(mosaic.targets[0])]))
    assert shares[2] == 1
    assert shares[0] < 0.4
    assert shares[0] + 0.1 < shares[1] < 0.9


@pytest.mark.parametrize("plain", [0.0, 0.5, 1.0])
def test_mix__probability__leaves_that_share_of_inputs_plain(script: ModuleType, plain: float) -> None:
    """Shapes and types stay; inputs are untouched with the given probability; the pool keeps the latest patches."""
    generator, pool, untouched = np.random.default_rng(1), deque(maxlen=3), []
    for turn in range(15):
        patches = numbered(script, 2, turn)
        batch = {
            "data": torch.stack([patch.image for patch in patches]),
            "target": [torch.stack(scale) for scale in zip(*(patch.targets for patch in patches), strict=True)],
            "keys": ["a", "b"],
        }
        mixed = script.mix(batch, pool, SLOT, plain, generator)
        assert mixed["keys"] == batch["keys"]
        assert mixed["data"].shape == batch["data"].shape
        assert [(t.shape, t.dtype) for t in mixed["target"]] == [(t.shape, t.dtype) for t in batch["target"]]
        untouched += [torch.equal(new, old) for new, old in zip(mixed["data"], batch["data"], strict=True)]
    assert np.mean(untouched) == plain or 0.2 < np.mean(untouched) < 0.8
    assert len(pool) == 3


def nnunet_plans() -> dict[str, Any]:
    """As much of nnU-Net's plans as the small ones are made from."""
    configuration = {
        "patch_size": [1, 2, 3],
        "spacing": [45.0, 4.6, 4.6],
        "batch_size": 9,
        "data_identifier": "x",
        "architecture": {"arch_kwargs": {"conv_bias": True}},
    }
    return {"plans_name": "nnUNetPlans", "configurations": {"2d": {}, "3d_fullres": configuration}}


@pytest.mark.parametrize("role", ["fine", "coarse", "small", "mosaic"])
@pytest.mark.parametrize("dataset", ["em", "lung", "ms", "brain", "head_neck"])
def test_small_plans__all_roles__patch_fits_the_network(script: ModuleType, dataset: str, role: str) -> None:
    """Patches can be halved by all strides; the small role has half of the fine patch, and no more voxels per step."""
    plans, recipe = nnunet_plans(), script.RECIPES[dataset]
    before = json.dumps(plans)
    small = script.small_plans(plans, recipe, role)
    assert json.dumps(plans) == before
    assert small["plans_name"] == "smallPlans"
    assert [*small["configurations"]] == ["3d_lowres" if role == "coarse" else "3d_fullres"]
    (configuration,) = small["configurations"].values()
    network = configuration["architecture"]["arch_kwargs"]
    assert network["conv_bias"] is True
    assert {len(network[key]) for key in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage")} == {5}
    patch, strides = configuration["patch_size"], np.prod(network["strides"], axis=0)
    assert not np.mod(patch, strides).any()
    if role == "small":
        for edge, whole, stride in zip(patch, recipe.fine.patch, strides, strict=True):
            assert whole / 2 <= edge < whole / 2 + stride
        voxels = math.prod(patch) * configuration["batch_size"]
        assert 0.7 < voxels / (math.prod(recipe.fine.patch) * recipe.fine.batch) <= 1
    if role == "mosaic":  # slots begin where the voxels of the coarsest labels begin
        slot = np.array(patch) // 2
        assert not np.mod(slot, np.prod(network["strides"][:-1], axis=0)).any()


@pytest.mark.parametrize(("dataset", "factors"), [("em", (1, 4, 4)), ("lung", (2, 4, 4)), ("ms", (2, 2, 2))])
def test_small_plans__coarse__voxels_are_larger_than_fine_ones(
    script: ModuleType, dataset: str, factors: tuple[int, ...]
) -> None:
    """The coarse network sees several fine voxels as one; in the EM data only those of one section."""
    plans = nnunet_plans()
    planned = {"em": [45.0, 4.6, 4.6], "lung": [3.0, 0.7, 0.7], "ms": [1.0, 1.0, 1.0]}[dataset]
    plans["configurations"]["3d_fullres"]["spacing"] = planned
    fine, coarse = (script.small_plans(plans, script.RECIPES[dataset], role) for role in ("fine", "coarse"))
    spacings = [next(iter(found["configurations"].values()))["spacing"] for found in (fine, coarse)]
    assert np.divide(spacings[1], spacings[0]) == pytest.approx(factors)
    assert (spacings[0] == planned) == (dataset != "lung")  # lung CTs differ too much for nnU-Net's choice


def test_strip__a_training_checkpoint__keeps_what_inference_needs(
    script: ModuleType, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Optimiser, log and plans are gone; weights are halved, stored once, and the loader restores their type."""
    folder = model_folder(mirror_axes=(1, 2))
    before, path = load_model(folder), folder / "fold_all" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save(checkpoint | {"optimizer_state": {"x": 1}, "command": "rm"}, path)
    script.strip(path, tmp_path / "stripped.pth")
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


def test_skip_broken_step__gradients__only_finite_ones_change_weights(script: ModuleType) -> None:
    """A gradient that is not a number leaves all weights as they were; the next step goes on."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    optimizer.register_step_pre_hook(script.skip_broken_step)
    for broken in (float("nan"), float("inf"), 1.0):
        for weight in weights:
            weight.grad = torch.ones(2)
        weights[0].grad = torch.tensor([1.0, broken])
        optimizer.step()
        expected = torch.full((2,), 0.9 if broken == 1 else 1.0)
        assert all(torch.equal(weight, expected) for weight in weights)


class Hostile:
    """Would run a command when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def test_strip__hostile_checkpoint__is_refused_and_nothing_is_written(
    script: ModuleType, model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even an object in a key that stripping would drop is never unpickled."""
    path = model_folder() / "fold_all" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | {"logging": Hostile()}, path)
    with pytest.raises(UntrustedModelError):
        script.strip(path, tmp_path / "stripped.pth")
    assert "unpickled" not in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


def test_load_weights__another_network__is_an_error(script: ModuleType, model_folder: Callable[..., Path]) -> None:
    """The message names the folder and a parameter."""
    folder = model_folder()
    network = load_model(model_folder(channels=2)).networks[0]
    with pytest.raises(ModelError, match=r"holds another network.*weight") as caught:
        script.load_weights(network, folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "small", "-o", "x"], 2, "--start"),
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
        for name, array in ((f"imagesTr/{case}_0000", voxels), (f"labelsTr/{case}", voxels > 130)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(array.astype(np.uint8))
            image.SetSpacing((1.0, 1.0, 2.0))
            sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    description = {"channel_names": {"0": "EM"}, "labels": {"background": 0, "x": 1}, "numTraining": 2}
    (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nii.gz"}))
    return folder.parent


@pytest.mark.long
def test_main__tiny_data_set__trains_and_measures(
    script: ModuleType, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From raw data to models that load; steps change weights, always in the same way; Dice is nnU-Net's own."""
    network = script.Network((8, 32, 32), (4, 8, 8), ((3, 3, 3),) * 3, ((1, 1, 1), (1, 2, 2), (2, 2, 2)), 2)
    monkeypatch.setitem(script.RECIPES, "em", script.Recipe("Dataset999_Tiny", network, network))
    mixed: list[int] = []
    mix = script.mix
    monkeypatch.setattr(script, "mix", lambda batch, *rest: mixed.append(len(batch["data"])) or mix(batch, *rest))
    common = ["--dataset", "em", "--data", str(raw), "--work", str(tmp_path / "work"), "--steps", "2"]
    fine, mosaic, again = tmp_path / "fine", tmp_path / "mosaic", tmp_path / "again"
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


@pytest.mark.long
def test_main__killed_after_an_epoch__goes_on_where_it_was(
    script: ModuleType, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second piece starts with the first one's weights and at its learning rate, and mirrors as the recipe says."""
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    network = script.Network((8, 32, 32), (4, 8, 8), ((3, 3, 3),) * 3, ((1, 1, 1), (1, 2, 2), (2, 2, 2)), 2)
    monkeypatch.setitem(script.RECIPES, "em", script.Recipe("Dataset999_Tiny", network, network, mirror=(0, 2)))
    monkeypatch.setattr(script, "STEPS_PER_EPOCH", 1)
    epochs: list[int] = []
    step = PolyLRScheduler.step
    monkeypatch.setattr(PolyLRScheduler, "step", lambda self, epoch=None: epochs.append(epoch) or step(self, epoch))
    loaded: list[Path] = []
    load = script.load_weights
    monkeypatch.setattr(script, "load_weights", lambda network, folder: loaded.append(folder) or load(network, folder))
    publish = script.publish

    def publish_and_die(*arguments: Any) -> None:
        publish(*arguments)
        raise KeyboardInterrupt

    out = tmp_path / "fine"
    command = ["--dataset", "em", "--data", str(raw), "--work", str(tmp_path / "work"), "--every", "1", "-o", str(out)]
    monkeypatch.setattr(script, "publish", publish_and_die)
    with pytest.raises(KeyboardInterrupt):
        script.main([*command, "--steps", "2"])
    monkeypatch.setattr(script, "publish", publish)
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
