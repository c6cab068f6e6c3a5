"""The benchmark itself, on a tiny data set with tiny models, so that it keeps working; real data are never run here."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import benchmark_module, blobs, import_benchmark
from raw_data import save_case
from rich.console import Console

from coarse2fine.errors import C2FError
from coarse2fine.evaluation.masks import dice
from coarse2fine.io import read_volume

COLUMNS = {
    "row", "case", "coarse_s", "fine_s", "total_s", "ratio", "dice", "iou", "hd95", "surface_dice", "ap", "agreement",
    "network_voxels", "canvases", "fill", "peak_rss_mb", "bound_ratio",
}  # fmt: skip
SHAPE, SETTINGS = (12, 40, 24), ["rois.threshold=0.55", "canvas.size=[16, 32, 32]"]


ladder = benchmark_module("rows.ladder")
rows = benchmark_module("rows.methods")


@pytest.fixture(autouse=True)
def one_run_in_a_turn(ladder: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here all rows are short."""
    monkeypatch.setattr(ladder, "SHORT_S", 0.0)


@pytest.fixture
def dataset_folder(model_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A test and a training case in nnU-Net's layout, and models by role."""
    for number, (split, case) in enumerate((("Ts", "b"), ("Tr", "a"))):
        voxels = blobs(SHAPE)[:: 1 - 2 * number].copy()
        save_case(tmp_path, split, case, voxels, voxels > 130)
    folders = {"coarse": model_folder(spacing=(4.0, 2.0, 2.0), seed=3), "fine": model_folder(seed=6)}
    for role, folder in folders.items():
        shutil.copytree(folder, tmp_path / "D" / role)
    return tmp_path


@pytest.fixture
def make_bench(dataset_folder: Path) -> Callable[..., Any]:
    registry, module = import_benchmark("common.registry"), import_benchmark("common.bench")
    changes = {"config": None, "models": {role: f"D/{role}" for role in ("coarse", "fine", "small")}, "tolerance": 1.0}
    dataset = registry.load_dataset("em").model_copy(update=changes)

    def make(*overrides: str, **options: Any) -> Any:
        case = registry.choose_case(dataset, data=dataset_folder)
        return module.Bench(dataset, case, source=str(dataset_folder), overrides=[*SETTINGS, *overrides], **options)

    return make


def test_bench__labels_that_are_merged__are_compared_with_merged_ones(make_bench: Callable[..., Any]) -> None:
    """The reference has the labels of the models, made of those in the file."""
    bench = make_bench()
    assert set(np.unique(bench.reference)) == {0, 1}
    other = make_bench()
    other.dataset = other.dataset.model_copy(update={"merged": {"nothing": (7,), "something": (1, 3)}})
    assert np.array_equal(other.reference, 2 * bench.reference)


def console() -> Console:
    return Console(file=io.StringIO(), record=True, width=200)


@pytest.mark.long
def test_measure_rows__all_of_them__fill_every_column(
    ladder: ModuleType, rows: ModuleType, make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    """Each row segments the case, is judged against reference and nnU-Net, and ends in one list of rows."""
    bench, store, screen = make_bench(), ladder.Store(tmp_path / "out"), console()
    ladder.measure_rows(bench, list(rows.ROWS), 1, store, screen)
    found = {row["row"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())}
    without = {
        "small_patch_one_stage",
        "accelerated_mosaic_norm_case",
        "accelerated_mosaic_norm_canvas",
        "one_stage_mosaic",
    }
    assert list(found) == [name for name in rows.ROWS if name not in without] + ["bound"]
    assert screen.export_text().count("skipped, there is no") == len(without)
    for name, row in found.items():
        assert name == "bound" or row.keys() >= COLUMNS
        assert name == "bound" or row["ratio"] == pytest.approx(found["nnunet"]["total_s"] / row["total_s"])
    for name in ("nnunet", "one_stage", "accelerated", "top_patches"):
        labels = read_volume([tmp_path / "out" / "labels" / "b" / f"{name}.nii.gz"]).channels[0]
        assert found[name]["dice"] == pytest.approx(dice(labels > 0, bench.reference > 0))
    assert found["nnunet"]["agreement"] == 1
    assert found["one_stage"]["agreement"] > 0.999
    assert found["accelerated"]["agreement"] < 0.999
    ours = found["accelerated"]
    assert found["bound"]["total_s"] == pytest.approx(ours["total_s"] / ours["bound_ratio"])
    assert ours["coarse_s"] + ours["fine_s"] < ours["total_s"]
    assert found["crop_foreground"]["coarse_s"] > 0


@pytest.mark.long
def test_measure_rows__voxels__are_those_of_the_network_inputs(
    ladder: ModuleType, make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    """One-stage and nnU-Net see the same tiles; mirroring along three axes makes eight passes; step 0.8 saves some."""
    store, names = ladder.Store(tmp_path / "out"), ["nnunet", "nnunet_mirroring", "nnunet_step_0.8", "one_stage"]
    ladder.measure_rows(make_bench(), names, 1, store, console())
    plain, mirrored, wide, ours = ({row["row"]: row for row in store.rows}[name] for name in names)
    assert plain["network_voxels"] == ours["network_voxels"] == plain["canvases"] * 8 * 16 * 16
    assert mirrored["network_voxels"] == 8 * plain["network_voxels"]
    assert mirrored["canvases"] == plain["canvases"] == ours["canvases"]
    assert wide["network_voxels"] < plain["network_voxels"]
    assert mirrored["mirroring"]
    assert not plain["mirroring"]


def test_measure_rows__norm_tiles__are_counted_but_not_in_the_bound(
    ladder: ModuleType, make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    """The lower bound is the coarse pass and the canvases' own passes, as far as crops fill them."""
    bench = make_bench("canvas.norm=case", "canvas.norm_tiles=2")
    effort = bench.run(import_benchmark("common.bench").run_ours, tmp_path / "labels.nii.gz")
    canvases, tile = effort.report.canvases.voxels, 8 * 16 * 16
    assert effort.network_voxels["fine"] == canvases + 2 * tile
    share = canvases / effort.network_voxels["fine"]
    assert effort.bound_s == pytest.approx(effort.report.timing_s.coarse + effort.fill * effort.network_s * share)
    assert effort.bound_s < effort.total_s


@pytest.mark.alone
@pytest.mark.parametrize(("short", "runs"), [(1e9, 5), (0.0, 1)])
def test_run_turn__short_row__is_the_median_of_five_runs(
    ladder: ModuleType, rows: ModuleType, make_bench: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, short: float, runs: int,
) -> None:  # fmt: skip
    """Not the first, which often is slow; a long row is run once."""
    seen, bench = [], make_bench()

    def method(bench: Any, output: Path) -> Any:
        seen.append(rows.ROWS["coarse_only"].method(bench, output))
        return seen[-1]

    monkeypatch.setattr(ladder, "SHORT_S", short)
    effort = ladder.run_turn(bench, method, tmp_path / "labels.nii.gz")
    assert len(seen) == runs
    assert effort.total_s == np.median([one.total_s for one in seen])


@pytest.mark.long
def test_measure_rows__cut_off__goes_on_where_it_stopped(
    ladder: ModuleType,
    rows: ModuleType,
    make_bench: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finished runs survive an interruption and are not measured again; turns go back and forth."""
    bench, log = make_bench(), []

    def method(bench: Any, output: Path, *, name: str) -> Any:
        log.append(name)
        if len(log) == 4:
            raise KeyboardInterrupt
        return real[name].method(bench, output)

    real = {name: rows.ROWS[name] for name in ("nnunet", "accelerated", "one_stage")}
    logged = {name: rows.Row(row.title, partial(method, name=name)) for name, row in real.items()}
    monkeypatch.setattr(ladder, "ROWS", logged)
    with pytest.raises(KeyboardInterrupt):
        ladder.measure_rows(bench, list(real), 2, ladder.Store(tmp_path), console())
    store = ladder.Store(tmp_path)
    assert {name: store.runs("b", name) for name in real} == dict.fromkeys(real, 1)
    ladder.measure_rows(bench, list(real), 2, store, console())
    assert log == ["nnunet", "accelerated", "one_stage", "one_stage", "one_stage", "accelerated", "nnunet"]
    row = store.find("b", "accelerated")
    assert row["total_s"] == pytest.approx(np.median([run["total_s"] for run in row["runs"]]))
    assert store.runs("b", "accelerated") == 2


def test_measure_rows__a_row_fails__others_go_on(
    ladder: ModuleType,
    rows: ModuleType,
    make_bench: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a user could mend is said, and costs one row only."""

    def refuse(bench: Any, output: Path) -> Any:
        raise C2FError("no such thing", "Try another.")

    monkeypatch.setattr(ladder, "ROWS", {"bad": rows.Row("bad", refuse), "accelerated": rows.ROWS["accelerated"]})
    store, screen = ladder.Store(tmp_path), console()
    ladder.measure_rows(make_bench(), ["bad", "accelerated"], 1, store, screen)
    assert [store.runs("b", name) for name in ("bad", "accelerated")] == [0, 1]
    assert "bad: left out, no such thing" in screen.export_text()


@pytest.mark.long
def test_measure_rows__labels_are_gone__goes_on_without_comparing(
    ladder: ModuleType, make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    """Results that come from elsewhere have no label files; agreement stays as it was, or unknown for a new row."""
    ladder.measure_rows(make_bench(), ["nnunet", "accelerated"], 1, ladder.Store(tmp_path), console())
    shutil.rmtree(tmp_path / "labels")
    store = ladder.Store(tmp_path)
    before = store.find("b", "accelerated")["agreement"]
    ladder.measure_rows(make_bench(), ["accelerated"], 2, store, console())
    ladder.measure_rows(make_bench(), ["coarse_only"], 1, store, console())
    assert store.runs("b", "accelerated") == 2
    assert store.find("b", "accelerated")["agreement"] == before
    assert store.find("b", "coarse_only")["agreement"] is None
    assert store.find("b", "coarse_only")["ratio"] > 0


@pytest.mark.parametrize("change", ["settings", "models"])
def test_measure_rows__something_changed__is_refused(
    ladder: ModuleType, make_bench: Callable[..., Any], dataset_folder: Path, tmp_path: Path, change: str
) -> None:
    """Rows of different settings or models do not end up in one table."""
    ladder.measure_rows(make_bench(), ["accelerated"], 1, ladder.Store(tmp_path / "out"), console())
    if change == "models":
        plans = dataset_folder / "D" / "fine" / "plans.json"
        plans.write_text(plans.read_text() + " ")
    bench = make_bench("rois.threshold=0.6") if change == "settings" else make_bench()
    with pytest.raises(C2FError, match=f"was measured with other {change}"):
        ladder.measure_rows(bench, ["accelerated"], 1, ladder.Store(tmp_path / "out"), console())


def test_store__broken_file__is_an_error_and_stays(ladder: ModuleType, tmp_path: Path) -> None:
    """Results are never overwritten because they cannot be read."""
    (tmp_path / "results.json").write_text("[{")
    with pytest.raises(C2FError, match=r"results\.json is no JSON"):
        ladder.Store(tmp_path)
    assert (tmp_path / "results.json").read_text() == "[{"


def test_judge_label__known_masks__gives_all_metrics(ladder: ModuleType) -> None:
    """Two objects, one found and one missed, and a false one far away."""
    true, found = np.zeros((2, 8, 8, 8), bool)
    true[1:3, 1:3, 1:3] = found[1:3, 1:3, 1:3] = True
    true[6, 6, 6] = found[1, 6, 1] = True
    scores = ladder.judge_label(found, true, (1.0, 1.0, 1.0), 0.5)
    assert scores["dice"] == pytest.approx(16 / 18)
    assert scores["iou"] == pytest.approx(8 / 10)
    assert scores["surface_dice"] == pytest.approx(16 / 18)
    assert scores["ap"] == pytest.approx(1 / 3)
    assert scores["recall"] == 0.5
    assert scores["hd95"] > 1


def test_judge__label_ignore__is_left_out(ladder: ModuleType, make_bench: Callable[..., Any], tmp_path: Path) -> None:
    """What is found where nobody has decided is no mistake, and nothing is missed there; the files stay as they are."""
    bench = make_bench()
    description = bench.folder("fine") / "dataset.json"
    content = json.loads(description.read_text())
    before = sitk.GetArrayFromImage(sitk.ReadImage(str(bench.case.reference)))
    middle, found = before.shape[2] // 2, before.copy()
    found[:, :, middle:] = 1
    truth = before.copy()
    truth[:, :, middle:] = max(content["labels"].values()) + 1
    for name, array in (("found", found), ("truth", truth)):
        image = sitk.GetImageFromArray(array)
        image.CopyInformation(sitk.ReadImage(str(bench.case.reference)))
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    bench = bench.on(dataclasses.replace(bench.case, reference=tmp_path / "truth.nii.gz"))
    assert ladder.judge(bench, tmp_path / "found.nii.gz")["dice"] < 0.9
    content["labels"]["ignore"] = int(truth.max())
    kept = description.read_text()
    description.write_text(json.dumps(content))
    try:
        scores = ladder.judge(make_bench().on(bench.case), tmp_path / "found.nii.gz")
    finally:
        description.write_text(kept)
    assert (scores["dice"], scores["hd95"], scores["recall"]) == (1.0, 0.0, 1.0)


def test_judge__nothing_found__has_no_distance(
    ladder: ModuleType, make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    """An infinite distance becomes null, as JSON has no infinity."""
    bench = make_bench()
    empty = sitk.ReadImage(str(bench.case.reference)) * 0
    sitk.WriteImage(empty, str(tmp_path / "empty.nii.gz"))
    scores = ladder.judge(bench, tmp_path / "empty.nii.gz")
    assert (scores["dice"], scores["hd95"]) == (0.0, None)
    json.dumps(scores, allow_nan=False)


@pytest.fixture
def registered(dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tiny data set under a name of its own; returns the options that lead there."""
    registry = import_benchmark("common.registry")
    text = (registry.FOLDER / "em.yaml").read_text().replace("Dataset101_VNCMito/nnUNetTrainer__smallPlans__3d_", "D/")
    text = text.replace("D/lowres", "D/coarse").replace("D/fullres", "D/fine").replace("configs/em.yaml", "covid")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "tiny.yaml").write_text(text)
    monkeypatch.setattr(registry, "FOLDER", tmp_path / "datasets")
    settings = ["coarse.patch_size=null", "coarse.body_crop=null", "rois.heatmap_voxel=null", "rois.window=null"]
    settings += ["canvas.slot=null", "fine.crop_threshold=null", "canvas.size=null", *SETTINGS]
    options = [word for setting in settings for word in ("--set", setting)]
    return ["--dataset", "tiny", "--data", str(dataset_folder), "--models", str(dataset_folder), *options]


@pytest.mark.long
def test_main__quick_run__writes_rows_experiment_and_environment(
    registered: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line from a data set's file to results, for a named case and its rows."""
    out = tmp_path / "out"
    arguments = ["--cases", "a", "--rows", "nnunet", "accelerated", "--experiments", "selection", "--repeat", "1"]
    assert import_benchmark("run").main([*registered, *arguments, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [(row["case"], row["row"], row.get("split")) for row in results] == [
        ("a", "nnunet", "train"), ("a", "accelerated", "train"), ("a", "bound", "train"),
    ]  # fmt: skip
    assert (out / "experiments" / "selection.png").read_bytes().startswith(b"\x89PNG")
    (session,) = json.loads((out / "environment.json").read_text())
    assert session["environment"]["versions"]["torch"]
    assert str(tmp_path) not in json.dumps(results)
    assert "accelerated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--rows", "accelerate"], "did you mean 'accelerated'", 1),
        (["--experiments", "packings"], "did you mean 'packing'", 1),
        (["--cases", "z"], "has no case 'z' here", 2),
        (["--set", "rois.treshold=0.1"], "did you mean", 1),
    ],
)
def test_main__wrong_option__says_what_and_exits(
    registered: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    code: int,
) -> None:
    """Mistakes are messages without a traceback."""
    assert import_benchmark("run").main([*registered, *arguments, "--out", str(tmp_path / "out")]) == code
    assert message in capsys.readouterr().err


def test_main__missing_data__says_where_to_get_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A data set that is not here is a clear skip for scripts: exit code 2."""
    assert import_benchmark("run").main(["--dataset", "word", "--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "github.com/HiLab-git/WORD" in capsys.readouterr().err


def test_main__list__names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """All that can be chosen is shown."""
    assert import_benchmark("run").main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name in ("covid_masks", "accelerated_no_canvas", "centre_windows", "preferred_order"):
        assert f"  {name}: " in printed
