"""``c2f-finetune``: from a table of pictures, or labelled volumes, to weights, predictions and measures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blobs
from picture_tables import EDGE, save_picture, save_set
from raw_data import save_case
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from coarse2fine.cli.finetune import main
from coarse2fine.networks.vit import ViTShape, interpolate, new_vit
from coarse2fine.nnunet.loading import load_model, load_plans, new_network
from coarse2fine.pretrain.weights import load_vit, write_weights

pytestmark = pytest.mark.usefixtures("no_board")

TINY = ("--size", f"{EDGE}", "--patch", "4", "--width", "24", "--depth", "2", "--heads", "2")
SHORT = ("--steps", "2", "--batch", "2", "--device", "cpu")
LEARNS = ("--steps", "50", "--batch", "8", "--rate", "3e-3", "--augment", "none", "--device", "cpu")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return save_set(tmp_path / "set")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Of a pretrained transformer, so to say."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    write_weights(folder, new_vit(ViTShape(1, (EDGE, EDGE), (4, 4), 24, 2, 2), 7))
    return folder / "weights.safetensors"


def words(*parts: object) -> list[str]:
    return [str(part) for part in parts]


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    return dict(json.loads((folder / "metrics.json").read_text())["measures"])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_main__labels_of_pictures__are_found_and_written_down(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measures are those of the predictions, for scikit-learn too; what is printed is what is written."""
    output = tmp_path / "out"
    assert main(words("--table", table, "--labels", "bright", "-o", output, *TINY, *LEARNS)) == 0
    truth = {row["file"]: row for row in csv.DictReader(table.open(encoding="utf-8"))}
    found = rows(output)
    assert len(found) == 4
    assert all(truth[row["file"]]["patient"] == row["patient"] for row in found)
    measure = metrics(output)["auroc"]
    expected = [int(truth[row["file"]]["bright"]) for row in found]
    if len(set(expected)) == 2:
        assert measure["value"] == pytest.approx(roc_auc_score(expected, [float(row["bright"]) for row in found]))
    assert measure["value"] in (1.0, None)
    told = capsys.readouterr().err
    assert "labels of 20 pictures of 10 patients, of 20 pictures to learn from" in told
    assert f"accuracy: {metrics(output)['accuracy']['value']:.3f}" in told
    assert sorted(path.name for path in output.iterdir()) == [
        "curve.json",
        "finetuning.json",
        "head.safetensors",
        "metrics.json",
        "predictions.csv",
        "weights.safetensors",
    ]


def test_main__the_same_command_again__is_done_and_other_settings_are_refused(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The setting that differs is named; another folder takes them."""
    output = tmp_path / "out"
    command = words("--table", table, "--classes", "kind", *TINY, *SHORT)
    assert main([*command, "-o", str(output)]) == 0
    before = (output / "weights.safetensors").stat().st_mtime_ns
    assert main([*command, "-o", str(output)]) == 0
    assert "finished already" in capsys.readouterr().err
    assert main([*command, "-o", str(output), "--share", "0.5"]) == 1
    assert "share is 1.0 there, 0.5 here" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "other"), "--share", "0.5"]) == 0
    assert (output / "weights.safetensors").stat().st_mtime_ns == before


def test_main__weights_to_begin_with__a_probe_leaves_them_and_a_training_changes_them(
    table: Path, weights: Path, tmp_path: Path
) -> None:
    """And another fine-tuning begins with what the last one wrote."""
    common = words("--table", table, "--labels", "bright,left", *SHORT)
    assert main([*common, "--weights", str(weights), "--frozen", "-o", str(tmp_path / "probe")]) == 0
    assert main([*common, "--weights", str(weights), "-o", str(tmp_path / "full")]) == 0
    tensors = [
        load_file(folder / "weights.safetensors") for folder in (weights.parent, tmp_path / "probe", tmp_path / "full")
    ]
    assert all(torch.equal(tensors[0][name], one) for name, one in tensors[1].items())
    assert not all(torch.equal(tensors[0][name], one) for name, one in tensors[2].items())
    again = tmp_path / "full" / "weights.safetensors"
    assert main([*common, "--weights", str(again), "-o", str(tmp_path / "again")]) == 0


@pytest.mark.long
def test_main__masks_of_pictures__are_found(table: Path, tmp_path: Path) -> None:
    """With a Dice of each picture that was held out."""
    output = tmp_path / "out"
    masks = table.parent / "masks"
    assert main(words("--table", table, "--masks", masks, "-o", output, *TINY, *LEARNS)) == 0
    scores = [float(row["dice foreground"]) for row in rows(output)]
    assert metrics(output)["dice"]["value"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert np.mean(scores) > 0.7


def test_main__plans_of_2d__their_network_learns_labels_and_masks_of_pictures(
    table: Path, tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    """Also beginning with weights of another number of outputs."""
    plans = model_folder(patch=(EDGE, EDGE), spacing=(1.0, 1.0), reader="NaturalImage2DIO") / "plans.json"
    folder = tmp_path / "pretrained"
    folder.mkdir()
    write_weights(folder, new_network(load_plans(plans, "2d", flat=True), 1, 3))
    common = words("--table", table, "--plans", plans, "-c", "2d", *SHORT)
    assert main([*common, "--labels", "bright", "-o", str(tmp_path / "labels")]) == 0
    weights = ("--weights", str(folder / "weights.safetensors"), "--rate", "1e-9")
    assert main([*common, "--masks", str(table.parent / "masks"), *weights, "-o", str(tmp_path / "masks")]) == 0
    first, then = (load_file(one / "weights.safetensors") for one in (folder, tmp_path / "masks"))
    name = "encoder.stages.1.0.convs.0.conv.weight"
    assert torch.allclose(first[name], then[name], atol=1e-5)
    assert {len(one["decoder.seg_layers.1.weight"]) for one in (first, then)} == {1, 2}


def test_main__labelled_volumes__become_a_model_folder_that_inference_takes(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Beginning with the weights of another number of outputs; tested on imagesTs."""
    labels = {"background": 0, "bright": 1}
    for part, names in (("Tr", "ab"), ("Ts", "c")):
        for name in names:
            image = blobs((12, 24, 24), seed=ord(name))
            save_case(tmp_path / "raw", part, name, image, image > 60)
    document = {"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 2}
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(document))
    plans = model_folder() / "plans.json"
    pretrained = tmp_path / "pretrained"
    pretrained.mkdir()
    write_weights(pretrained, new_network(load_plans(plans, "3d_fullres"), 1, 3))
    command = words("--data", tmp_path / "raw", "--plans", plans, "--weights", pretrained / "weights.safetensors")
    output = tmp_path / "out"
    assert main([*command, *SHORT, "--mirror", "0,1", "-o", str(output)]) == 0
    assert [row["file"] for row in rows(output)] == ["c"]
    assert 0 <= metrics(output)["dice bright"]["value"] <= 1
    model = load_model(output / "model")
    assert model.mirror_axes == (0, 1)
    ours, theirs = load_file(output / "weights.safetensors"), model.networks[0].state_dict()
    name = "encoder.stages.1.0.convs.0.conv.weight"
    assert torch.allclose(theirs[name], ours[name], atol=1e-3)


@pytest.mark.parametrize(
    ("more", "says", "better"),
    [
        ((), "it is not said what to learn", ("--labels", "bright")),
        (("--labels", "bright", "--classes", "kind"), "--labels and --classes contradict", ("--labels", "bright")),
        (("--labels", "nothing"), "no column 'nothing'", ("--labels", "bright")),
        (("--labels", "kind"), "'kind' of 'p00.png' is 'dark'", ("--classes", "kind")),
        (("--labels", "bright", "--share", "0.01"), "a share of 0.01 of 10 patients leaves none", ("--labels", "left")),
        (("--labels", "bright", "--test-share", "1"), "leaves nothing to learn from", ("--labels", "left")),
        (("--labels", "bright", "--layer-decay", "2"), "the layer decay is 2", ("--labels", "bright")),
        (("--labels", "bright", "--drop-path", "1"), "--drop-path is 1", ("--labels", "bright")),
        (("--labels", "bright", "--augment", "strong"), "'strong' in the augmentation", ("--labels", "bright")),
        (("--labels", "bright", "--mirror", "2"), "--mirror is '2'", ("--labels", "bright", "--mirror", "1")),
        (("--labels", "bright", "--warm-up", "1"), "--warm-up is 1", ("--labels", "bright")),
        (("--labels", "bright", "--steps", "0"), "--steps is 0", ("--labels", "bright")),
        (("--labels", "bright", "--rate", "nan"), "--rate is nan", ("--labels", "bright")),
        (("--labels", "bright", "--seed", "-1"), "--seed is -1", ("--labels", "bright")),
        (("--labels", "bright", "--frozen", "--batch", "1"), "--batch is 1", ("--labels", "bright", "--frozen")),
        (("--labels", "bright", "--patch", "5"), "not divisible into patches", ("--labels", "bright")),
        (("--labels", "bright", "--device", "tpu"), "--device 'tpu' is unknown", ("--labels", "bright")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_main__what_cannot_be__is_told_in_one_line_and_the_remedy_works(
    table: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    says: str,
    better: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is written until all is known to fit."""
    output = tmp_path / "out"
    assert main(words("--table", table, "-o", output, *TINY, *SHORT, *more)) == 1
    assert says in capsys.readouterr().err
    assert not output.exists()
    if more != better:
        assert main(words("--table", table, "-o", output, *TINY, *SHORT, *better)) == 0


def test_main__weights_of_another_network__are_refused_by_their_first_key(
    table: Path, weights: Path, tmp_path: Path, model_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes beside weights contradict them; nnU-Net's weights need plans, and those of other plans do not fit."""
    common = words("--table", table, "--labels", "bright", *SHORT, "-o", tmp_path / "out")
    assert main([*common, "--weights", str(weights), "--depth", "3"]) == 1
    assert "--depth is 3, but" in capsys.readouterr().err
    flat = {"patch": (EDGE, EDGE), "spacing": (1.0, 1.0), "reader": "NaturalImage2DIO"}
    plans = [model_folder(channels=channels, **flat) / "plans.json" for channels in (1, 2)]
    folder = tmp_path / "unet"
    folder.mkdir()
    write_weights(folder, new_network(load_plans(plans[0], "2d", flat=True), 1, 3))
    unet = ("--weights", str(folder / "weights.safetensors"))
    assert main([*common, *unet]) == 1
    assert "is of a network of nnU-Net's, which its plans describe" in capsys.readouterr().err
    assert main([*common, *unet, "--plans", str(plans[1]), "-c", "2d"]) == 1
    assert "encoder.stages.0.0.convs.0.conv.weight is (4, 1, 3, 3) instead of (4, 2," in capsys.readouterr().err
    assert main([*common, *unet, "--plans", str(plans[0])]) == 1
    assert "has no configuration '3d_fullres'" in capsys.readouterr().err
    assert main([*common, *unet, "--plans", str(plans[0]), "-c", "2d"]) == 0


def test_main__pictures_of_another_size_than_the_pretraining__have_positions_interpolated(
    table: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said, and whoever goes on with these weights sees the same positions."""
    common = words("--table", table, "--labels", "bright", *SHORT, "--weights", weights)
    assert main([*common, "-o", str(tmp_path / "same")]) == 0
    assert "interpolated" not in capsys.readouterr().err
    assert main([*common, "--size", "32", "24", "-o", str(tmp_path / "larger")]) == 0
    assert "positions of 4 x 4 patches are interpolated to 8 x 6 (bicubic)" in capsys.readouterr().err
    before = load_vit(weights)
    after = load_vit(tmp_path / "larger" / "weights.safetensors")
    assert torch.equal(after.positions, interpolate(before.positions, (4, 4), (8, 6)))
    assert main([*common, "--size", "33", "-o", str(tmp_path / "odd")]) == 1
    assert "33 x 33 are not divisible into patches of 4 x 4" in capsys.readouterr().err


def test_main__pictures_of_other_channels__are_refused(
    table: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is no longer there, too."""
    generator = np.random.default_rng(0)
    common = words("--table", table, "--labels", "bright", *SHORT, "--weights", weights)
    (table.parent / "images" / "p05.png").unlink()
    assert main([*common, "-o", str(tmp_path / "a")]) == 1
    assert "names 'p05.png', which is not in" in capsys.readouterr().err
    for number in range(24):
        save_picture(table.parent / "images" / f"p{number:02}.png", generator.integers(0, 255, (EDGE, EDGE, 3)))
    assert main([*common, "-o", str(tmp_path / "b")]) == 1
    assert "has 3 channel(s), the network takes 1" in capsys.readouterr().err
    without = words("--table", table, "--labels", "bright", *SHORT, *TINY)
    assert main([*without, "-o", str(tmp_path / "c")]) == 0
