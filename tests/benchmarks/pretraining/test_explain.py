"""The study of maps: planted objects lie where it says, and it runs from pictures to rows."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import import_benchmark
from PIL import Image
from scipy.ndimage import center_of_mass

from coarse2fine.finetune.heads import put_head
from coarse2fine.finetune.tasks import Classification

explain, studies = import_benchmark("pretraining.explain"), import_benchmark("pretraining.studies")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve radiographs of six patients, the first ones with lung masks."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "radiographs"
    for name in ("images", "lung_masks"):
        (folder / name).mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "patient", "view"))
        for number in range(12):
            name = f"x{number:02}"
            Image.fromarray(generator.integers(0, 255, (40, 40), np.uint8)).save(folder / "images" / f"{name}.jpg")
            writer.writerow((f"{name}.jpg", f"p{number // 2}", ("PA", "AP", "AP Supine")[number % 3]))
            if number < 10:
                mask = np.zeros((40, 40), np.uint8)
                mask[10:30, :20] = 255
                Image.fromarray(mask).save(folder / "lung_masks" / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("shape", [(48, 48), (24, 24, 24)])
def test_planted__every_second_image__has_a_brighter_ball_inside(shape: tuple[int, ...]) -> None:
    """Its mask is where it was made, wholly in the image, and the rest is noise."""
    examples, masks = explain.planted(shape, 40, np.random.default_rng(0))
    assert (
        [bool(mask.any()) for mask in masks] == [bool(target[0]) for target in examples.targets] == [True, False] * 20
    )
    inside = np.concatenate([image[0][mask] for image, mask in zip(examples.images, masks, strict=True)])
    outside = np.concatenate([image[0][~mask] for image, mask in zip(examples.images, masks, strict=True)])
    assert inside.mean() == pytest.approx(explain.BRIGHTER, abs=0.05)
    assert (outside.mean(), outside.std()) == pytest.approx((0, 1), abs=0.05)
    volume = np.pi * explain.RADIUS**2 * (1 if len(shape) == 2 else 4 / 3 * explain.RADIUS)
    for mask in masks[::2]:
        assert mask.sum() == pytest.approx(volume, rel=0.15)
        assert (np.abs(np.array(center_of_mass(mask)) - np.subtract(shape, 1) / 2) < np.array(shape) / 2 - 4).all()


def test_with_map__any_block__changes_no_output() -> None:
    """Other libraries are asked about the same network, and where tokens lie as pixels."""
    arm = explain.ARMS[-1]
    tuned = put_head(explain.new_network(arm, (48, 48), 0), Classification(("object",))).eval()
    images = torch.randn(2, 1, 48, 48)
    for view in arm.views.values():
        other, name = explain.with_map(tuned, view.layer)
        torch.testing.assert_close(other(images), tuned(images))
        assert not any("0.1" in key for key in dict(tuned.named_modules()))
        assert isinstance(other.get_submodule(name), explain.AsMap)


@pytest.mark.long
def test_study__one_step__gives_rows_of_all_networks_and_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps equal those of captum and MONAI, however little was learned."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(explain, "EXPLAINED", 4)
    setup = studies.Setup([0], tmp_path / "work", 1, data)
    rows = [row for part in explain.study(setup) for row in part]
    names = {name for arm in explain.ARMS for name in arm.names}
    for where in explain.SHAPES:
        hits = {row.method: row for row in rows if (row.measure, row.labels) == (explain.HITS, where)}
        assert set(hits) == {*names, explain.FLAT}
        assert {len(row.cases) for row in hits.values()} == {4}
    differences = [row.value for row in rows if row.measure in (explain.CAPTUM, explain.MONAI)]
    assert len(differences) == 2 * 2 * sum(
        view.method == "grad-cam" for arm in explain.ARMS for view in arm.views.values()
    )
    assert max(differences) < 1e-5
    good = {row.method: row.measure for row in rows if row.measure in (explain.ACCURACY, explain.DICE)}
    assert good == {arm.name: explain.DICE if arm.dense else explain.ACCURACY for arm in explain.ARMS}
    inside = {row.method: row for row in rows if row.measure == explain.INSIDE}
    assert inside[explain.FLAT].value == pytest.approx(0.25, abs=0.01)
    assert all(0 <= row.value <= 1 for row in inside.values())
    assert list(explain.study(studies.Setup([0], tmp_path / "work", 1, data, tuple(rows)))) == []
