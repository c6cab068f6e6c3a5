"""c2f-explain: from a file to a map in its geometry; what cannot be; statistics."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from infer_runs import OBLIQUE, SHAPE, assert_same_grid, save, voxels
from PIL import Image
from planted import write_spot_model

from canvas import Box
from coarse2fine.cli import explain

INSIDE = (slice(4, 9), slice(8, 18), slice(10, 20))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that finds bright voxels."""
    labels = {"background": 0, "lesion": 1, "other": 2}
    return write_spot_model(tmp_path_factory.mktemp("spots") / "model", labels=labels)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Noise with a bright box, in an oblique file."""
    array = np.random.default_rng(0).normal(100, 5, SHAPE)
    array[INSIDE] += 400
    return save(tmp_path / "scan.nii.gz", array.astype(np.int16))


def run(*arguments: object) -> int:
    return explain.main([str(argument) for argument in ("--device", "cpu", *arguments)])


def says(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_main__oblique_file__has_its_map_in_its_geometry(
    suffix: str, model: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From 0 to 1, over the object, with a picture; told are the layer and what was explained."""
    output, picture = tmp_path / "new" / f"map{suffix}", tmp_path / "new" / "map.png"
    assert run("-i", scan, "-o", output, "--model", model, "--label", "lesion", "--png", picture) == 0
    assert_same_grid(output, scan)
    found = voxels(output)
    inside = np.zeros(SHAPE, bool)
    inside[INSIDE] = True
    assert sitk.ReadImage(str(output)).GetPixelID() == sitk.sitkFloat32
    assert found.min() >= 0
    assert found.max() == 1
    assert inside.flatten()[found.argmax()]
    assert found[inside].sum() > 5 * inside.mean() * found.sum()
    assert np.asarray(Image.open(picture).convert("RGB")).std() > 10
    told = says(capsys)
    assert "hires-cam at layer encoder.stages.1, fold all" in told
    assert "scan: lesion, " in told


def test_main__mask__explains_the_voxels_of_the_label(
    model: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a file with several labels those of the one; one that is not there is refused, with its values."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[INSIDE] = 1
    both = save(tmp_path / "labels.nii.gz", labels)
    words = ["-i", scan, "--model", model, "--mask", both]
    assert run(*words, "-o", tmp_path / "map.nii.gz", "--label", "lesion", "--method", "grad-cam") == 0
    assert f"scan: lesion, {(labels == 1).sum()} voxels of {both}" in says(capsys)
    assert run(*words, "-o", tmp_path / "no.nii.gz", "--label", "other") == 1
    assert "has the label other (2); its values are 0, 1" in says(capsys)
    assert not (tmp_path / "no.nii.gz").exists()
    labels[0] = 2
    save(both, labels)
    assert run(*words, "-o", tmp_path / "no.nii.gz", "--label", "other") == 0
    assert f"scan: other, {(labels == 2).sum()} voxels" in says(capsys)


def test_main__what_cannot_be__is_a_clear_line_before_anything_runs(
    model: Path,
    model_folder: Callable[..., Path],
    scan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Labels, layers, models and files."""
    monkeypatch.setattr("coarse2fine.cli.explain_run.explain_view", lambda *given, **named: pytest.fail("it ran"))
    pictures = model_folder(patch=(16, 16), spacing=(1.0, 1.0), reader="NaturalImage2DIO")
    save(tmp_path / "many" / "one.nii.gz")
    save(tmp_path / "many" / "two.nii.gz")
    zarr.save(str(tmp_path / "store.zarr"), np.zeros(SHAPE))
    taken = save(tmp_path / "taken.nii.gz")
    cases: list[tuple[dict[str, object], str]] = [
        ({"--label": "lesoin"}, "'lesoin' is no label that"),
        ({"--layer": "encoder.stages.9"}, "no layer 'encoder.stages.9' Name one as it does: encoder.stages"),
        ({"--model": pictures}, "map.nii.gz: unknown file type Use one of .png"),
        ({"--model": pictures, "-o": tmp_path / "map.png"}, "scan.nii.gz is no picture that can be read"),
        ({"--model": model_folder(cascade=True)}, "is a cascade (3d_cascade_fullres)"),
        ({"--model": tmp_path / "none"}, "does not exist"),
        ({"--folds": "7"}, "fold_7"),
        ({"-i": tmp_path / "none.nii.gz"}, "none.nii.gz does not exist"),
        ({"-i": tmp_path / "many"}, f"holds 2 cases Name one of them: -i {tmp_path / 'many' / 'one.nii.gz'}"),
        ({"-i": tmp_path / "store.zarr"}, "is a store, and maps are made of volumes in files"),
        ({"-o": tmp_path / "map.png"}, "unknown file type"),
        ({"-o": taken}, "exists already"),
        ({"-o": scan}, "scan.nii.gz is an input or another result of this run Choose another name with -o."),
        ({"--png": tmp_path / "map.jpg"}, "map.jpg: unknown file type Use one of .png"),
        ({"--png": tmp_path / "map.nii.gz"}, "Choose another name with --png."),
    ]
    for changed, problem in cases:
        words = {"-i": scan, "-o": tmp_path / "map.nii.gz", "--model": model, "--label": "lesion"} | changed
        assert run(*(word for pair in words.items() for word in pair)) == 1, changed
        told = says(capsys)
        assert problem in told, (changed, told)
    assert not (tmp_path / "map.nii.gz").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-o", "m.nrrd"], "needed: --input, --model, --label (or --statistics)"),
        (["-o", "m.csv", "--statistics", "a", "b", "--label", "x", "--png", "y"], "leave out --label, --png"),
    ],
)
def test_main__options_that_do_not_go_together__are_named(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As slips of the pen are."""
    with pytest.raises(SystemExit) as ended:
        explain.main(words)
    assert ended.value.code == 2
    assert problem in says(capsys)


def test_main__statistics__has_a_row_for_each_map_and_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Energy and area by hand, and means on the terminal; what does not fit is refused."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[INSIDE] = 3
    for name, weight in (("one", 3.0), ("two", 0.5)):
        found = np.full(SHAPE, 0.1, np.float32)
        found[0, 0, 0], found[5, 10, 12] = 1, weight
        save(tmp_path / "maps" / f"{name}.nii.gz", found / found.max())
        save(tmp_path / "labels" / f"{name}.nrrd", labels)
    words = ["--statistics", tmp_path / "maps", tmp_path / "labels"]
    assert explain.main([str(word) for word in (*words, "-o", tmp_path / "table.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["case"], row["label"], row["hit"]) for row in rows] == [("one", "3", "1"), ("two", "3", "0")]
    inside, everything = 500, float(np.prod(SHAPE))
    assert float(rows[0]["area"]) == pytest.approx(inside / everything)
    assert float(rows[0]["energy"]) == pytest.approx((49.9 + 3) / (0.1 * (everything - 2) + 4), rel=1e-4)
    assert "1 of 2 maxima inside" in says(capsys)
    assert explain.main([str(word) for word in (*words, "-o", tmp_path / "table.csv")]) == 1
    assert "exists already" in says(capsys)
    for wrong, problem in (
        (save(tmp_path / "moved.nrrd", labels, OBLIQUE.part(Box.of((1, 0, 0), SHAPE))), "lie on different grids"),
        (save(tmp_path / "none.nrrd", labels * 0), "has no label but 0"),
        (tmp_path / "maps" / "one.nii.gz", "its values are no whole numbers"),
    ):
        named = ["--statistics", tmp_path / "maps" / "one.nii.gz", wrong, "-o", tmp_path / "other.csv"]
        assert explain.main([str(word) for word in named]) == 1
        assert problem in says(capsys)
    (tmp_path / "labels" / "two.nrrd").unlink()
    assert explain.main([str(word) for word in (*words, "-o", tmp_path / "other.csv")]) == 1
    assert "has no labels for two Put two.nii.gz there" in says(capsys)
