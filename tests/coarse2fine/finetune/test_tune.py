"""Fine-tuning as a whole on tiny data: it learns, goes on where it was cut off, and predicts whole images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coarse2fine.finetune.examples import Examples, LabelledCrops, cut, windows
from coarse2fine.finetune.policy import Policy
from coarse2fine.finetune.tasks import Classification, Segmentation
from coarse2fine.finetune.tune import finetune, predict
from coarse2fine.networks.vit import ViT, ViTShape
from coarse2fine.nnunet.loading import load_plans, new_network
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.state import Done
from coarse2fine.pretrain.weights import tensors_of

pytestmark = pytest.mark.usefixtures("no_board")

LABELS, VOXELS = Classification(("bright",)), Segmentation(("background", "square"))


def squares(count: int, shape: tuple[int, ...], seed: int) -> Examples:
    """Noise with a cube of 4 voxels' edge in it, which is bright in half of the images, or in all of them."""
    generator = np.random.default_rng(seed)
    images, maps = [], []
    for _ in range(count):
        image, target = generator.normal(size=(1, *shape)).astype(np.float32), np.zeros(shape, np.uint8)
        start = [int(generator.integers(size - 4)) for size in shape]
        target[tuple(slice(low, low + 4) for low in start)] = 1
        images.append(image + 3 * target)
        maps.append(target)
    names = [f"{number}" for number in range(count)]
    return Examples(images, maps, names, names)


def bright(count: int, seed: int) -> Examples:
    """Every second image is brighter."""
    generator = np.random.default_rng(seed)
    truth = [np.array([float(number % 2)], np.float32) for number in range(count)]
    images = [(generator.normal(size=(1, 8, 8)) + 0.7 * target[0]).astype(np.float32) for target in truth]
    names = [f"{number}" for number in range(count)]
    return Examples(images, truth, names, names)


def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(ViTShape(1, (8, 8), (4, 4), 24, 2, 2))


def adam(steps: int, **changes: object) -> Schedule:
    return Schedule(steps, 8, rate=3e-3, optimizer="adamw", fall="cosine", piece=10, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("frozen", [False, True], ids=["full", "probe"])
def test_finetune__labels_of_images__finds_them_in_others(tmp_path: Path, frozen: bool) -> None:
    """Far above chance; a probe leaves the network as it was."""
    network = vit()
    before = {name: one.clone() for name, one in tensors_of(network).items()}
    outcome = finetune(network, LABELS, bright(32, 0), bright(32, 1), adam(40), tmp_path, decay=0.7, frozen=frozen)
    measure = outcome.measures["auroc"]
    assert measure.value > 0.8
    assert measure.interval[0] <= measure.value <= measure.interval[1]
    same = [torch.equal(one, before[name]) for name, one in tensors_of(network).items()]
    assert all(same) == frozen
    assert [found.shape for found in outcome.found] == 32 * [(1,)]


def test_finetune__cut_off__goes_on_to_the_same_network(tmp_path: Path) -> None:
    """Head included; with augmentation, whose random numbers are those of the step."""

    class StopError(Exception):
        pass

    def stop(done: Done) -> None:
        if done.step == 10:
            raise StopError

    policy = Policy.parse("rand-m6-mstd0.5-inc1", mirror=(1,))
    whole, cut_off = tmp_path / "a", tmp_path / "b"
    whole.mkdir()
    cut_off.mkdir()
    rest = (LABELS, bright(16, 0), bright(8, 1), adam(20))
    expected = finetune(vit(), *rest, whole, policy=policy)
    with pytest.raises(StopError):
        finetune(vit(), *rest, cut_off, policy=policy, told=stop)
    found = finetune(vit(), *rest, cut_off, policy=policy)
    tensors = tensors_of(expected.tuned)
    assert all(torch.allclose(one, tensors[name], atol=1e-6) for name, one in tensors_of(found.tuned).items())
    assert np.allclose(found.found, expected.found, atol=1e-6)


@pytest.mark.long
def test_finetune__maps_of_volumes__a_network_of_nnunet_finds_what_is_bright(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """In volumes that are larger than its patch along some axes and smaller along others."""
    network = new_network(load_plans(model_folder() / "plans.json", "3d_fullres"), 2, 0)
    schedule = Schedule(40, 4, rate=0.02, momentum=0.9, warm_up=0.1)
    shape = (6, 20, 16)
    outcome = finetune(
        network, VOXELS, squares(6, shape, 0), squares(4, shape, 1), schedule, tmp_path, patch=(8, 16, 16)
    )
    assert outcome.measures["dice"].value > 0.7
    assert [found.shape for found in outcome.found] == 4 * [shape]


def test_finetune__maps_of_pictures__a_transformer_finds_what_is_bright(tmp_path: Path) -> None:
    """With its own decoder."""
    outcome = finetune(vit(), VOXELS, squares(16, (8, 8), 0), squares(8, (8, 8), 1), adam(60), tmp_path)
    assert outcome.measures["dice square"].value > 0.7


class Pointwise(nn.Module):
    """A network that sees each voxel by itself, so that windows cannot matter; the mean for labels."""

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.dense, self.factor = dense, nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.cat([torch.zeros_like(images), self.factor * images], 1)
        return logits if self.dense else images.flatten(1).mean(1, keepdim=True)


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_predict__windows_of_images_of_several_sizes__are_put_together(batch: int) -> None:
    """Maps are those of whole images; labels have the mean probability over windows, by brute force."""
    images = squares(1, (9, 21), 3).images[0], squares(1, (5, 6), 4).images[0]
    maps = list(predict(Pointwise(True), VOXELS, images, (6, 8), batch))
    assert all(np.array_equal(found, image[0] > 0) for found, image in zip(maps, images, strict=True))
    found = list(predict(Pointwise(False), LABELS, images, (6, 8), batch))
    for values, image in zip(found, images, strict=True):
        parts = [cut(image, start, (6, 8)).mean() for start in windows(image.shape[1:], (6, 8))]
        assert values == pytest.approx([np.mean(1 / (1 + np.exp(-np.array(parts))))], rel=1e-4)


def test_draw__crops_of_volumes__have_their_labels_and_more_foreground_than_by_chance() -> None:
    """A cube is in less than one in ten random crops, in others on purpose; padding is background."""
    examples = squares(3, (6, 80, 80), 0)
    crops = LabelledCrops(examples, (8, 16, 16))
    batch = crops.draw(60, np.random.default_rng(0))
    images, targets = batch["images"].numpy(), batch["targets"].numpy()
    assert images.shape == (60, 1, 8, 16, 16)
    assert targets.shape == (60, 8, 16, 16)
    assert (images[:, 0, 0] == 0).all()
    assert (targets[:, 0] == 0).all()
    assert images[:, 0][targets == 1].mean() == pytest.approx(3, abs=0.2)
    assert np.mean(targets.any((1, 2, 3))) > 0.25
