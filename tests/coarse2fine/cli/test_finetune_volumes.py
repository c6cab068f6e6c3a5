"""``c2f-finetune`` with labels of whole volumes, and ``c2f-explain`` of what it has made."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from picture_tables import save_picture, write_table
from raw_data import save_case, save_volume

from coarse2fine.cli.explain import main as explain_main
from coarse2fine.cli.finetune import main as finetune_main
from coarse2fine.cli.pretrain import main as pretrain_main
from coarse2fine.explain.gradcam import grad_cam
from coarse2fine.finetune.load import load_tuned
from coarse2fine.finetune.tune import predict
from coarse2fine.io import read_volume
from coarse2fine.networks.vit import interpolate
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.pretrain.weights import load_vit

pytestmark = pytest.mark.usefixtures("no_board")

SHAPE = (8, 20, 16)  # of which a patch of 8 x 16 x 16 sees a part
VIT = ("--patch", "4", "--width", "24", "--depth", "2", "--heads", "2")
SHORT = ("--steps", "2", "--batch", "2", "--device", "cpu")
LEARNS = ("--steps", "100", "--batch", "8", "--rate", "0.1", "--device", "cpu")


@pytest.fixture(scope="module")
def plans(model_folder: Callable[..., Path]) -> Path:
    return model_folder() / "plans.json"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two volumes of each of eight patients, with a cube that is bright or dark; named in all ways that there are."""
    rows = []
    for number in range(16):
        generator, bright = np.random.default_rng(number), int(number // 2 in (1, 3, 4, 6))
        voxels = generator.normal(100, 5, SHAPE)
        corner = [int(generator.integers(0, size - 6)) for size in SHAPE]
        voxels[tuple(slice(start, start + 6) for start in corner)] = 200 if bright else 20
        name, mark = f"v{number:02}", "_0000" * (number % 2)
        save_volume(tmp_path / "images" / f"{name}{mark}.nii.gz", voxels.astype(np.float32))
        written = (name, f"{name}{mark}.nii.gz")[number // 2 % 2]
        part = "train" if number < 12 else "test"
        rows.append((written, f"patient {number // 2}", bright, ("dark", "bright")[bright], part))
    return write_table(tmp_path / "table.csv", ("file", "patient", "bright", "kind", "split"), rows)


def words(*parts: object) -> list[str]:
    return [str(part) for part in parts]


def tune(*parts: object) -> int:
    return finetune_main(words(*parts))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_main__labels_of_volumes__are_learned_and_what_is_loaded_predicts_the_same(
    table: Path, plans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By nnU-Net's encoder, over all windows of a volume; no patient is in both parts."""
    output = tmp_path / "out"
    assert tune("--table", table, "--classes", "kind", "--plans", plans, "-o", output, *LEARNS) == 0
    found, known = rows(output), {row["file"]: row for row in csv.DictReader(table.open(encoding="utf-8"))}
    assert len(found) == 4
    assert all(float(row[known[row["file"]]["kind"]]) > 0.5 for row in found)
    assert "labels of 12 volumes of 6 patients, of 12 volumes to learn from" in capsys.readouterr().err
    document = json.loads((output / "metrics.json").read_text())
    assert document["measures"]["accuracy"]["value"] == 1
    assert document["test"] == {"images": 4, "patients": 2}
    loaded = load_tuned(output)
    assert loaded.model is not None
    for row in found:
        file = next((table.parent / "images").glob(f"{row['file'][:3]}*"))
        view = view_volume(read_volume([file]), loaded.model)
        (again,) = predict(loaded.network, loaded.task, [view.read(view.window).numpy()], loaded.size, 4)
        assert [float(row[name]) for name in ("bright", "dark")] == pytest.approx(again.tolist(), abs=1e-4)


def test_main__share_of_labels__is_of_patients_and_the_rest_is_tested_alike(
    table: Path, plans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small share lies in a larger one, so both see the same volumes held out."""
    for share in ("0.4", "1"):
        out = tmp_path / share
        assert tune("--table", table, "--labels", "bright", "--plans", plans, "--share", share, "-o", out, *SHORT) == 0
    assert "labels of 4 volumes of 2 patients, of 12 volumes to learn from" in capsys.readouterr().err
    assert [row["file"] for row in rows(tmp_path / "0.4")] == [row["file"] for row in rows(tmp_path / "1")]


def test_main__transformer_of_volumes__begins_with_its_pretraining_or_at_random(
    table: Path, plans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A probe leaves it as it was; for crops of another size positions are interpolated."""
    save_volume(
        tmp_path / "unlabelled" / "a.nii.gz", np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    )
    images = ("--images", tmp_path / "unlabelled", "--plans", plans)
    assert pretrain_main(words("--network", "vit", *images, *VIT, *SHORT, "-o", tmp_path / "pre")) == 0
    weights = tmp_path / "pre" / "weights.safetensors"
    common = ("--table", table, "--labels", "bright", "--plans", plans, *SHORT)
    assert tune(*common, "--weights", weights, "--frozen", "-o", tmp_path / "probe") == 0
    first, probe = (load_vit(tmp_path / name / "weights.safetensors").state_dict() for name in ("pre", "probe"))
    assert all(torch.equal(first[name], probe[name]) for name in first)
    assert tune(*common, "--network", "vit", *VIT, "-o", tmp_path / "random") == 0
    assert load_vit(tmp_path / "random" / "weights.safetensors").shape == load_vit(weights).shape
    capsys.readouterr()
    assert tune(*common, "--weights", weights, "--size", "8", "12", "16", "-o", tmp_path / "other") == 0
    assert "positions of 2 x 4 x 4 patches are interpolated to 2 x 3 x 4 (trilinear)" in capsys.readouterr().err
    network = load_tuned(tmp_path / "other").network.network
    assert torch.equal(network.positions, interpolate(load_vit(weights).positions, (2, 4, 4), (2, 3, 4)))


@pytest.mark.parametrize("network", ["nnunet", "vit"])
def test_explain__fine_tuning_of_volumes__its_map_lies_over_the_volume(
    network: str, table: Path, plans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a volume that is one window it is that window's map; voxels cannot be named, as labels are of the whole."""
    output, scan = tmp_path / "out", tmp_path / "scan.nii.gz"
    options = VIT if network == "vit" else ()
    assert (
        tune(
            "--table",
            table,
            "--labels",
            "bright",
            "--plans",
            plans,
            "--network",
            network,
            *options,
            *SHORT,
            "-o",
            output,
        )
        == 0
    )
    save_volume(scan, np.random.default_rng(0).normal(100, 20, (8, 16, 16)).astype(np.float32))
    common = words("-i", scan, "-o", tmp_path / "map.nii.gz", "--model", output, "--label", "bright", "--device", "cpu")
    loaded = load_tuned(output)
    assert loaded.model is not None
    layer = {"nnunet": "network.encoder.stages.1", "vit": "network.blocks.0"}[network]
    view = view_volume(read_volume([scan]), loaded.model)
    batch = view.read(view.window)[None]
    wanted = grad_cam(loaded.network, batch, layer, 0, method="hires-cam", conserve=True)[0].numpy()
    assert explain_main([*common, "--png", str(tmp_path / "map.png")]) == 0
    told = capsys.readouterr().err
    assert f"hires-cam at layer {layer}" in told
    assert "voxels" not in told
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "map.nii.gz")))
    assert wanted.max() > 0
    np.testing.assert_allclose(found, wanted / wanted.max(), atol=1e-4)
    assert explain_main([*common, "--mask", str(scan), "--overwrite"]) == 1
    assert "tells labels of whole volumes" in capsys.readouterr().err


def test_explain__transformer_that_segments_volumes__explains_where_it_finds_the_class(
    plans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or the voxels of a mask."""
    labels = {"background": 0, "bright": 1}
    for number in range(3):
        voxels = np.random.default_rng(number).normal(100, 20, (8, 16, 16)).astype(np.float32)
        save_case(tmp_path / "raw", "Tr", f"v{number}", voxels, voxels > 120)
    document = {"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 3}
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(document))
    common = ("--data", tmp_path / "raw", "--plans", plans, "--network", "vit", *VIT, *SHORT)
    assert tune(*common, "--test-share", "0.4", "-o", tmp_path / "out") == 0
    scan, mask = tmp_path / "raw/imagesTr/v0_0000.nii.gz", tmp_path / "raw/labelsTr/v0.nii.gz"
    output = words("-o", tmp_path / "map.nii.gz", "--model", tmp_path / "out", "--label", "bright", "--device", "cpu")
    assert explain_main([*words("-i", scan, "--mask", mask), *output]) == 0
    count = int((sitk.GetArrayFromImage(sitk.ReadImage(str(mask))) == 1).sum())
    assert f"bright, {count} voxels of {mask}" in capsys.readouterr().err
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "map.nii.gz"))).max() == 1


def test_main__volumes_that_cannot_be__are_one_clear_line_and_the_remedy_works(
    table: Path, plans: Path, model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written before all is known to fit."""
    images = tmp_path / "images"
    save_picture(images / "p.png", np.zeros((8, 8)))
    save_volume(images / "both" / "a.nii.gz", np.zeros(SHAPE, np.float32))
    save_volume(images / "both" / "b.nii.gz", np.zeros(SHAPE, np.float32))
    lines = table.read_text(encoding="utf-8").splitlines()
    two = model_folder(channels=2) / "plans.json"

    def problem(*changes: object, first: str | None = None) -> str:
        changed = table.with_name("other.csv")
        changed.write_text("\n".join([lines[0], *([first] if first else []), *lines[1:]]), encoding="utf-8")
        parts = ("--table", changed, "--labels", "bright", "--plans", plans, *SHORT, "-o", tmp_path / "out", *changes)
        assert tune(*parts) == 1
        assert not (tmp_path / "out").exists()
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 2, said
        return said

    assert "names 'p.png', which is no volume" in problem(first="p.png,x,1,bright,train")
    assert "names 'nowhere', which is not in" in problem(first="nowhere,x,1,bright,train")
    assert "'both', which holds 2 volumes" in problem(first="both,x,1,bright,train")
    assert "channel" in problem("--plans", two)
    assert "--depth is 2, but the plans say what the network is" in problem("--depth", "2")
    masks = ("--table", table, "--masks", tmp_path, "--plans", plans, *SHORT, "-o", tmp_path / "out")
    assert tune(*masks) == 1
    assert "--masks are of pictures" in capsys.readouterr().err
    fixed = table.with_name("fixed.csv")
    fixed.write_text("\n".join([lines[0], "both/a,x,1,bright,train", *lines[1:]]), encoding="utf-8")
    assert tune("--table", fixed, "--labels", "bright", "--plans", plans, *SHORT, "-o", tmp_path / "out") == 0
