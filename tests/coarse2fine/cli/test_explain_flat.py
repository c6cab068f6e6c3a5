"""``c2f-explain`` with 2D networks of nnU-Net's: pictures, and volumes slice by slice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from picture_tables import EDGE, save_picture, save_set
from PIL import Image
from planted import write_spot_model
from raw_data import save_volume
from torch.nn import functional as F

from coarse2fine.cli.explain import main as explain_main
from coarse2fine.cli.finetune import main as finetune_main
from coarse2fine.explain.gradcam import grad_cam
from coarse2fine.finetune.load import load_tuned
from coarse2fine.io import read_volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.pretrain.crops import view_picture
from coarse2fine.pretrain.pictures import read_picture

FLAT = {"patch": (16, 16), "spacing": (1.0, 1.0)}
INSIDE = (slice(20, 28), slice(6, 14))


def explain(*words: object) -> int:
    return explain_main([str(word) for word in ("--device", "cpu", *words)])


def as_array(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colours"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_main__picture_and_a_2d_model__has_its_map_over_the_object(
    suffix: str, channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tile by tile in the picture's own size, as nnU-Net looks at it."""
    pixels = np.random.default_rng(0).integers(90, 110, (36, 24, 3))
    pixels[INSIDE] = 240
    picture = save_picture(tmp_path / f"scan{suffix}", pixels if channels == 3 else pixels[..., 0])
    model = write_spot_model(tmp_path / "model", reader="NaturalImage2DIO", channels=channels, **FLAT)
    output = tmp_path / "map.png"
    assert explain("-i", picture, "-o", output, "--model", model, "--label", "lesion", "--png", tmp_path / "o.png") == 0
    found, inside = np.asarray(Image.open(output)), np.zeros((36, 24), bool)
    inside[INSIDE] = True
    assert (found.dtype, found.shape, found.max()) == (np.uint16, (36, 24), 65535)
    assert inside.flatten()[found.argmax()]
    assert found[inside].sum() / found.sum() > 5 * inside.mean()
    assert "hires-cam at layer encoder.stages.1" in capsys.readouterr().err
    assert Image.open(tmp_path / "o.png").width == 1200


def test_main__picture_of_one_tile__equals_the_map_of_the_network(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """At a layer that is named."""
    picture = save_picture(tmp_path / "a.png", np.random.default_rng(0).integers(1, 255, (16, 16)))
    folder = model_folder(reader="NaturalImage2DIO", **FLAT)
    layer = ("--layer", "encoder.stages.1")
    assert explain("-i", picture, "-o", tmp_path / "m.png", "--model", folder, "--label", "lesion", *layer) == 0
    model = load_model(folder, flat=True)
    view = view_picture(picture, model)
    batch = view.read(view.window)[:, 0][None]
    wanted = grad_cam(model.networks[0], batch, "encoder.stages.1", 1, method="hires-cam")[0].numpy()
    assert wanted.max() > 0
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "m.png")) / 65535, wanted / wanted.max(), atol=2e-5)


def test_main__volume_and_a_2d_model__is_explained_slice_by_slice(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each slice as the network sees it alone; one division, by the highest value of all; in the file's geometry."""
    folder = model_folder(transpose=(1, 0, 2), folds=("0", "1"), **FLAT)
    scan = save_volume(tmp_path / "scan.nii.gz", np.random.default_rng(0).normal(100, 20, (16, 5, 16)), (1.0, 7.0, 1.0))
    output = tmp_path / "map.nii.gz"
    assert explain("-i", scan, "-o", output, "--model", folder, "--label", "lesion") == 0
    told = capsys.readouterr().err
    assert "folds 0, 1" in told
    assert "check the unit" not in told  # slices may be of any thickness
    model, wanted = load_model(folder, flat=True), np.zeros((5, 16, 16))
    view = view_volume(read_volume([scan]), model)
    data = view.read(view.window)
    for number in range(5):
        for network in model.networks:
            wanted[number] += grad_cam(network, data[None, :, number], "encoder.stages.1", 1, method="hires-cam")[
                0
            ].numpy()
    assert wanted.max() > 0
    np.testing.assert_allclose(as_array(output), (wanted / wanted.max()).transpose(1, 0, 2), atol=1e-5)
    assert sitk.ReadImage(str(output)).GetSpacing() == pytest.approx((1.0, 7.0, 1.0))


@pytest.mark.parametrize("what", [("--labels", "bright"), ("--masks", "set/masks")], ids=["label", "mask"])
def test_main__fine_tuned_network_of_plans__has_the_map_of_a_picture(
    what: tuple[str, str], model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made again from the folder alone; the plans that it was made by may be gone."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.chdir(tmp_path)
    save_set(tmp_path / "set")
    plans = model_folder(reader="NaturalImage2DIO", patch=(EDGE, EDGE), spacing=(1.0, 1.0)) / "plans.json"
    kept = tmp_path / "plans.json"
    kept.write_bytes(plans.read_bytes())
    common = ["--table", "set/table.csv", "--plans", "plans.json", "-c", "2d", "--steps", "3", "--batch", "4"]
    assert finetune_main([*common, *what, "--device", "cpu", "-o", "tuned"]) == 0
    kept.unlink()
    label = "bright" if what[0] == "--labels" else "foreground"
    picture = save_picture(Path("large.png"), np.kron(np.asarray(Image.open("set/images/p02.png")), np.ones((3, 2))))
    assert explain("-i", picture, "-o", "map.png", "--model", "tuned", "--label", label) == 0
    loaded = load_tuned(Path("tuned"))
    assert loaded.intensities is not None
    batch = torch.from_numpy(loaded.intensities.normalise(read_picture(picture, loaded.size)))[None]
    head = loaded.outputs[label]
    found = grad_cam(loaded.network, batch, "network.encoder.stages.1", head, method="hires-cam")
    wanted = F.interpolate(found[None], (3 * EDGE, 2 * EDGE), mode="bilinear")[0, 0].numpy()
    assert wanted.max() > 0
    np.testing.assert_allclose(np.asarray(Image.open("map.png")) / 65535, wanted / wanted.max(), atol=2e-5)
