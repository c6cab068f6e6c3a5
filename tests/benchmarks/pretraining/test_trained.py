"""Studies that train networks, on small made-up data in the layout of the real ones: from files to rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import import_benchmark
from raw_data import save_volume

from coarse2fine.evaluation.masks import dice
from coarse2fine.finetune.examples import Examples
from coarse2fine.nnunet.loading import load_model
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.weights import tensors_of

pytestmark = pytest.mark.usefixtures("no_board")

arms, small, studies = (import_benchmark(f"pretraining.{name}") for name in ("arms", "small", "studies"))
hippocampus, product = (import_benchmark(f"pretraining.{name}") for name in ("hippocampus", "product"))
Network = small.Network
TINY = Network((1.0, 1.0, 1.0), (16, 16, 16), (4, 8))


def save(
    folder: Path, split: str, name: str, shape: Sequence[int], labels: int, spacing: tuple[float, float, float]
) -> None:
    """A case with bright balls, one for each label."""
    generator = np.random.default_rng(sum(map(ord, name)))
    image, target = generator.normal(100, 5, shape).astype(np.float32), np.zeros(shape, np.uint8)
    grid = np.indices(shape)
    for label in range(1, labels + 1):
        centre = generator.uniform(0.3, 0.7, 3) * shape
        inside = sum(((axis - at) / (0.25 * size)) ** 2 for axis, at, size in zip(grid, centre, shape, strict=True)) < 1
        image[inside], target[inside] = 140 + 20 * label, label
    save_volume(folder / f"images{split}" / f"{name}_0000.nii.gz", image, spacing)
    save_volume(folder / f"labels{split}" / f"{name}.nii.gz", target, spacing)


def save_dataset(
    folder: Path, shape: Sequence[int], labels: int, spacing: tuple[float, float, float], train: int
) -> Path:
    """A data set in nnU-Net's raw layout with two test cases."""
    for split, count in (("Tr", train), ("Ts", 2)):
        for number in range(count):
            save(folder, split, f"{split}{number}", shape, labels, spacing)
    names = {"background": 0, **{f"s{label}": label for label in range(1, labels + 1)}}
    text = str({"channel_names": {"0": "MRI"}, "labels": names, "numTraining": train, "file_ending": ".nii.gz"})
    (folder / "dataset.json").write_text(text.replace("'", '"'))
    return folder


def rows_of(study: Any, folder: Path, seeds: int = 1) -> list[Any]:
    setup = studies.Setup(range(seeds), folder / "work", 2, folder)
    return [row for rows in study.study(setup) for row in rows]


@pytest.mark.long
def test_hippocampus__made_up_images__a_row_for_each_arm_and_number_of_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From files to Dice of each test case; nothing is trained again that is there."""
    save_dataset(tmp_path / "Dataset506_Hippocampus", (24, 32, 24), 2, (1.5, 1.5, 1.5), 3)
    monkeypatch.setattr(hippocampus, "METHODS", {"mae": 2, "rotation-mae": 2})
    monkeypatch.setattr(hippocampus, "LABELS", (2,))
    rows = rows_of(hippocampus, tmp_path)
    assert [(row.method, row.labels) for row in rows] == [
        (name, "2") for name in (*hippocampus.RATES, "mae", "rotation-mae")
    ]
    assert all(len(row.cases) == 2 and 0 <= row.value <= 1 for row in rows)
    setup = studies.Setup(range(1), tmp_path / "work", 2, tmp_path, tuple(rows))
    assert list(hippocampus.study(setup)) == []


@pytest.mark.long
def test_product__made_up_stacks_and_brains__the_pipeline_runs_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brains come first; then both model folders are taken by the pipeline."""
    save_dataset(tmp_path / product.EM, (16, 128, 64), 1, (45.0, 4.6, 4.6), 2)
    save(tmp_path / product.UNLABELLED, "", "stack", (16, 128, 64), 1, (45.0, 4.6, 4.6))
    (tmp_path / product.UNLABELLED / "images").rename(tmp_path / product.UNLABELLED / "kept")
    (tmp_path / product.UNLABELLED / "kept" / "stack_0000.nii.gz").rename(tmp_path / product.UNLABELLED / "a.nii.gz")
    save_dataset(tmp_path / product.BRAIN, (32, 32, 32), 3, (3.0, 3.0, 3.0), 2)
    monkeypatch.setattr(product, "LABELS", (2,))
    rows = rows_of(product, tmp_path)
    assert [(row.method, row.measure) for row in rows] == [
        (arm, measure)
        for measures in ((product.ANY, product.EACH), (product.IOU, product.RECALL))
        for arm in product.ARMS
        for measure in measures
    ]
    assert all(0 <= row.value <= 1 for row in rows)
    assert load_model(tmp_path / "work" / "fine-model-0").patch == product.STAGES["fine"].patch


def test_eighth__each_seed__is_another_part_of_both_stacks_and_eight_are_all() -> None:
    """Together the parts are the stacks, none twice; those of a seed lie in different places."""
    stacks = [np.arange(2 * 16 * 3).reshape(1, 2, 16, 3) + 100 * number for number in range(2)]
    examples = Examples(stacks, [stack[0] for stack in stacks], ["a", "b"], ["a", "b"])
    parts = [product.eighth(examples, seed) for seed in range(8)]
    found = np.concatenate([image.reshape(-1) for part in parts for image in part.images])
    assert sorted(found) == sorted(np.concatenate([stack.reshape(-1) for stack in stacks]))
    for part in parts:
        assert [image.shape for image in part.images] == [(1, 2, 2, 3)] * 2
        assert all((image[0] == target).all() for image, target in zip(part.images, part.targets, strict=True))
        first, second = (image.min() for image in part.images)
        assert second - 100 != first


def test_fresh__pretrained_weights__all_but_the_layers_of_classes(tmp_path: Path) -> None:
    """What a pretraining has learned is taken; the rest is that of the network from scratch with the same seed."""
    data = save_dataset(tmp_path / "Dataset001_A", (16, 16, 16), 2, (1.0, 1.0, 1.0), 1)
    model = small.small_model(data, TINY, tmp_path / "plans")
    images = small.read_examples(data, "Tr", ["Tr0"], model).images
    settings = Settings(Schedule(2, 1, 5), "mae", block=4)
    weights = arms.pretrained(model, images, TINY.patch, settings, tmp_path / "mae")
    scratch, begun = (tensors_of(arms.fresh(model, 0, one)) for one in (None, weights))
    for name, tensor in begun.items():
        assert torch.equal(tensor, scratch[name] if "seg_layers" in name else weights[name])
    assert any("seg_layers" in name for name in begun)
    assert not all(torch.equal(begun[name], scratch[name]) for name in begun)


def test_fresh__bf16__rounds_what_the_network_computes_and_nothing_else(tmp_path: Path) -> None:
    """Outputs, weights and gradients have 32 bits."""
    data = save_dataset(tmp_path / "Dataset001_A", (16, 16, 16), 2, (1.0, 1.0, 1.0), 1)
    model = small.small_model(data, TINY, tmp_path / "plans")
    whole, halved = (arms.fresh(model, 0, bf16=bf16) for bf16 in (False, True))
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 1, *TINY.patch)).astype(np.float32))
    expected, found = whole(images).detach(), halved(images)
    found.square().mean().backward()
    assert not torch.equal(found, expected)
    assert torch.allclose(found.detach(), expected, atol=0.1 * float(expected.abs().max()))
    learning = [*halved.parameters()]
    assert {found.dtype, *(one.dtype for one in learning), *(one.grad.dtype for one in learning)} == {torch.float32}


@pytest.mark.long
def test_learn__bright_balls__are_found_in_images_not_seen(tmp_path: Path) -> None:
    """Training, and prediction in windows, learn what is plain to see."""
    data = save_dataset(tmp_path / "Dataset001_A", (20, 20, 20), 1, (1.0, 1.0, 1.0), 3)
    model = small.small_model(data, TINY, tmp_path / "plans")
    train, test = (small.read_examples(data, split, small.case_names(data, split), model) for split in ("Tr", "Ts"))
    network = arms.fresh(model, 0)
    schedule = Schedule(40, 2, 0, 1e-2, optimizer="adamw", fall="cosine", warm_up=0.1)
    arms.learn(network, model, train, TINY.patch, schedule, tmp_path / "training", (0, 1, 2))
    found = arms.segment(network, model, test.images, TINY.patch)
    assert min(dice(one > 0, target > 0) for one, target in zip(found, test.targets, strict=True)) > 0.9


def test_read_examples__larger_voxels__pool_labels_and_keep_small_objects(tmp_path: Path) -> None:
    """A single voxel of a label is there at half the resolution, too."""
    data = save_dataset(tmp_path / "Dataset001_A", (16, 16, 16), 1, (1.0, 1.0, 1.0), 1)
    lonely = np.zeros((16, 16, 16), np.uint8)
    lonely[5, 6, 7] = 1
    save_volume(data / "labelsTr" / "Tr0.nii.gz", lonely, (1.0, 1.0, 1.0))
    model = small.small_model(data, Network((2.0, 2.0, 2.0), (8, 8, 8), (4, 8)), tmp_path / "plans")
    examples = small.read_examples(data, "Tr", ["Tr0"], model)
    assert examples.images[0].shape == (1, 8, 8, 8)
    assert np.argwhere(examples.targets[0]).tolist() == [[2, 3, 3]]


@pytest.mark.parametrize("study", [hippocampus, product], ids=["hippocampus", "product"])
def test_study__no_data__names_the_folder(tmp_path: Path, study: Any) -> None:
    """One line says what is missing."""
    with pytest.raises(import_benchmark("common.registry").MissingDataError, match=r"holds no data set\n.*--data"):
        rows_of(study, tmp_path)
