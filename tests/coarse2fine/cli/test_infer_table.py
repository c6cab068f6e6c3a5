"""c2f-infer --table: one table of all cases, of labels or of objects."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import blobs
from infer_runs import SHAPE, Models, run, save, snapshot, use, voxels, write
from scipy import ndimage

NOTHING = ["--set", "rois.threshold=0.999999"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))


def test_main__table_of_a_folder__has_each_label_of_each_case(tmp_path: Path, models: Models) -> None:
    """Names are the model's, numbers those of the written labels, and the report says the same."""
    scans = {name: save(tmp_path / "in" / f"{name}.nii.gz", blobs(SHAPE, seed=seed)) for seed, name in enumerate("ab")}
    table, report = tmp_path / "t.csv", tmp_path / "r.json"
    arguments = ["-i", tmp_path / "in", "-o", tmp_path / "out", "--table", table, "--report", report, *use(models)]
    assert run(*arguments) == 0

    found = rows(table)
    assert [(row["case"], row["name"]) for row in found] == [("a", "lesion"), ("b", "lesion")]
    for row in found:
        labels = voxels(tmp_path / "out" / f"{row['case']}.nii.gz")
        inside = voxels(scans[row["case"]])[labels == 1]
        assert int(row["voxels"]) == inside.size > 0
        assert float(row["volume_ml"]) == pytest.approx(inside.size * 2.0 * 0.8 * 0.9 / 1000)
        assert int(row["components"]) == ndimage.label(labels, np.ones((3, 3, 3)))[1]
        assert float(row["channel0_p50"]) == np.median(inside)
        shapes = sitk.LabelShapeStatisticsImageFilter()
        shapes.Execute(sitk.ReadImage(str(tmp_path / "out" / f"{row['case']}.nii.gz")))
        where = [float(row[f"centroid_{axis}_mm"]) for axis in "xyz"]
        np.testing.assert_allclose(where, shapes.GetCentroid(1), atol=1e-3)
    reports = json.loads(report.read_text())
    assert [[{"case": one["case"], **row} for row in one["measures"]] for one in reports] == [
        [
            {
                key: json.loads(value) if key not in {"case", "name", "label", "frame"} else value
                for key, value in row.items()
            }
        ]
        for row in found
    ]
    assert [one["objects"] for one in reports] == [[], []]


def test_main__table_with_instances__has_each_object(tmp_path: Path, models: Models) -> None:
    """A row for each connected object of the labels that were written, the largest first."""
    table = tmp_path / "t.tsv"
    arguments = ["-i", save(tmp_path / "a.nii.gz"), "-o", tmp_path / "o.nii.gz", "--table", table, "--instances"]
    assert run(*arguments, *use(models)) == 0
    found, labels = rows(table), voxels(tmp_path / "o.nii.gz")
    numbered, count = ndimage.label(labels, np.ones((3, 3, 3)))
    assert [int(row["object"]) for row in found] == list(range(1, count + 1))
    sizes = sorted(np.bincount(numbered.ravel())[1:].tolist(), reverse=True)
    assert [int(row["voxels"]) for row in found] == sizes
    assert set(np.unique(labels)) == {0, 1}


@pytest.mark.parametrize("instances", [[], ["--instances"]])
def test_main__nothing_found__still_names_the_columns(tmp_path: Path, models: Models, instances: list[str]) -> None:
    """A label that is not there has no voxels; no objects are no rows."""
    table = tmp_path / "t.csv"
    arguments = ["-i", save(tmp_path / "a.nii.gz"), "-o", tmp_path / "o.nii.gz", "--table", table, *instances]
    assert run(*arguments, *NOTHING, *use(models)) == 0
    header = table.read_text().splitlines()[0].split(",")
    assert {"case", "label", "name", "voxels", "volume_ml", "centroid_z_mm", "channel0_p95"} <= set(header)
    assert [row["voxels"] for row in rows(table)] == ([] if instances else ["0"])


def test_main__region_based_model__measures_regions(
    tmp_path: Path, models: Models, model_folder: Callable[..., Path]
) -> None:
    """A row is a region with all labels that belong to it, by the name that the model has for it."""
    names = {"background": 0, "whole": [1, 2], "core": [2]}
    fine = model_folder(seed=2, labels=names, regions_class_order=[1, 2])
    table = tmp_path / "t.csv"
    arguments = ["-i", save(tmp_path / "a.nii.gz"), "-o", tmp_path / "o.nii.gz", "--table", table]
    assert run(*arguments, "--mode", "one-stage", "--fine-model", fine, "--device", "cpu") == 0
    labels = voxels(tmp_path / "o.nii.gz")
    assert [(row["name"], row["label"], int(row["voxels"])) for row in rows(table)] == [
        ("whole", "1 2", np.count_nonzero(labels)),
        ("core", "2", np.count_nonzero(labels == 2)),
    ]


def test_main__one_case_fails__the_others_are_in_the_table(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command fails and says which, and what is finished is measured."""
    save(tmp_path / "in" / "a.nii.gz")
    write(tmp_path / "in" / "b.nii.gz", b"no volume")
    table = tmp_path / "t.csv"
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--table", table, *use(models)) == 1
    assert [row["case"] for row in rows(table)] == ["a"]
    assert "--skip-existing and another --table" in " ".join(capfd.readouterr().err.split())


BAD: dict[str, tuple[list[str], str, list[str]]] = {
    "another ending": (["--table", "t.xlsx"], "unknown file type", ["--table", "t.csv"]),
    "an input": (["--table", "a.csv", "--report", "a.csv"], "another result of this run", ["--table", "b.csv"]),
    "exists": (["--table", "old.csv"], "exists already", ["--table", "old.csv", "--overwrite"]),
    "a folder": (["--table", "folder.csv"], "it is a folder", ["--table", "t.csv"]),
    "objects without a table": (["--instances"], "--instances without --table", ["--instances", "--table", "t.csv"]),
}


def inputs(folder: Path) -> None:
    save(folder / "a.nii.gz")
    write(folder / "old.csv", b"old")
    (folder / "folder.csv").mkdir()


@pytest.mark.parametrize("kind", BAD)
def test_main__table_that_cannot_be__is_refused(
    kind: str, tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One clear error before anything runs, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    given, message, _ = BAD[kind]
    inputs(tmp_path)
    before = snapshot(tmp_path)
    assert run("-i", "a.nii.gz", "-o", "o.nii.gz", *given, *use(models)) == 1
    assert message in capfd.readouterr().err
    assert snapshot(tmp_path) == before


@pytest.mark.long
@pytest.mark.parametrize("kind", BAD)
def test_remedy__table_that_cannot_be__runs(
    kind: str, tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What messages propose is done."""
    monkeypatch.chdir(tmp_path)
    inputs(tmp_path)
    assert run("-i", "a.nii.gz", "-o", "o.nii.gz", *BAD[kind][2], *use(models)) == 0
