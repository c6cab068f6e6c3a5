"""The benchmark of large volumes, on small ones with tiny models: real runs of ``c2f-infer``, really killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from conftest import benchmark_module, blobs, import_benchmark
from raw_data import save_case

from coarse2fine.io import open_store

STACKS = (("Ts", "b", (9, 130, 60)), ("Tr", "a", (8, 128, 40)))
WORDS = ["--cell", "8,128,128", "--factors", "1", "--repeat", "1", "--picks", "1", "--gvoxels", "0.0005"]
# A seed whose kills come early, so that they hit also where a run is much faster than the one before it.
WORDS += ["--kills", "3", "--seed", "796", "--set", "rois.threshold=0.55", "--set", "canvas.size=[16, 32, 32]"]


script = benchmark_module("scale")


@pytest.fixture
def measured(
    script: ModuleType, model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Runs the script on two stacks and tiny models, and returns its JSON."""
    for variable in import_benchmark("common.machine").THREAD_VARIABLES:
        monkeypatch.setenv(variable, "1")  # else the script would start this process again
    write_stacks(tmp_path / "data")
    for role, folder in {"coarse": model_folder(spacing=(4.0, 2.0, 2.0), seed=3), "fine": model_folder(seed=6)}.items():
        shutil.copytree(folder, tmp_path / "models" / role)
    changes = {"config": None, "models": {"coarse": "coarse", "fine": "fine"}}
    dataset = import_benchmark("common.registry").load_dataset("em").model_copy(update=changes)
    monkeypatch.setattr(script, "load_dataset", lambda name: dataset)
    places = {"--out": "out.json", "--data": "data", "--models": "models", "--work": "work"}
    words = [word for option, name in places.items() for word in (option, str(tmp_path / name))]

    def run(*parts: str) -> dict[str, Any]:
        assert script.main([*words, *WORDS, "--parts", *parts]) == 0
        return json.loads((tmp_path / "out.json").read_text())

    return run


def write_stacks(folder: Path) -> None:
    for number, (split, name, shape) in enumerate(STACKS):
        voxels = np.maximum(blobs(shape, seed=number, dtype=np.uint8), 1)
        save_case(folder, split, name, voxels, np.zeros(shape))


@pytest.mark.alone
def test_kills__worker_main_process_and_scheduler__end_with_the_same_voxels(measured: Callable[..., Any]) -> None:
    """Every kill is real, is survived by the same command, leaves no process, and changes nothing."""
    results = measured("kills")
    part = results["parts"]["kills"]
    assert (results["kills"], results["voxels_different"]) == (3, 0)
    assert (part["kills"], part["survived"], part["voxels_different"], part["left_behind"]) == (3, 3, 0, 0)
    assert {cycle["victim"] for cycle in part["cycles"]} == {"worker", "main", "scheduler"}
    assert [cycle["runs"] > 1 for cycle in part["cycles"] if cycle["victim"] == "main"] == [True]
    assert part["objects"] > 1


@pytest.mark.long
def test_measure__other_parts__fill_table_and_are_not_measured_again(
    script: ModuleType,
    measured: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From options to JSON to Markdown; sizes, cells and sums are what they have to be."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(script, "DEPTH", 2)
    results = measured("memory", "overhead", "gvoxel")
    parts = results["parts"]
    memory, gvoxel = parts["memory"], parts["gvoxel"]
    assert results["peak_rss_mb"] == {f"{row['volume_times']}x": row["peak_rss_mb"] for row in memory["sizes"]}
    assert results["s_per_gvoxel"] == gvoxel["s_per_gvoxel"]
    (size,) = memory["sizes"]
    assert (size["shape"], size["cells"], size["counts"]["voxels"]) == ([8, 256, 256], 4, 8 * 256 * 256)
    assert size["beyond_models_mb"] == pytest.approx(size["peak_rss_mb"] - memory["models_mb"])
    assert 0 < size["beyond_models_mb"] < memory["models_mb"]
    assert {name: len(values) for name, values in parts["overhead"]["seconds"].items()} == {
        "in_process": 1,
        "one_worker": 1,
    }
    assert (gvoxel["shape"], gvoxel["gvoxels"], gvoxel["failures"]) == ([16, 256, 256], 16 * 256**2 / 1e9, 0)
    assert gvoxel["s_per_gvoxel"] == pytest.approx(gvoxel["seconds"]["total"] / gvoxel["gvoxels"])
    assert gvoxel["largest_worker_mb"] > memory["models_mb"] / 2
    (pick,) = gvoxel["one_stage"]["picks"]
    assert gvoxel["one_stage"]["tiles"] == 3 * 31 * 31  # patches of 8 x 16 x 16 that overlap by half
    assert gvoxel["s_per_gvoxel_one_stage"] == pytest.approx(pick["s_per_tile"] * 3 * 31 * 31 / gvoxel["gvoxels"])
    assert gvoxel["ratio"] == pytest.approx(gvoxel["s_per_gvoxel_one_stage"] / gvoxel["s_per_gvoxel"])
    assert gvoxel["cells"] == 4
    assert pick["tiles"] == 3 * 15 * 15  # of one cell
    assert 0.05 < pick["s_per_tile"] * pick["tiles"] / pick["segment_s"] <= 1
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()
    monkeypatch.setitem(script.PARTS, "memory", (lambda bench: pytest.fail("measured again"), ("cell", "factors")))
    assert measured("memory") == results
    assert script.main(["--table", str(tmp_path / "out.json")]) == 0
    table = capsys.readouterr().out
    assert f"| Seconds per Gvoxel | {gvoxel['s_per_gvoxel']:.0f} |" in table
    assert f"{size['peak_rss_mb']:.0f} MB" in table


def test_measure__other_options__part_is_measured_again(
    script: ModuleType, measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of other options do not pass for these, and other parts stay."""
    runs: list[int] = []
    for name in ("memory", "overhead"):
        monkeypatch.setitem(script.PARTS, name, (lambda bench: runs.append(1) or {}, ("cell",)))
    monkeypatch.setattr(script, "figures", lambda parts: [])
    monkeypatch.setattr(script, "summary", lambda parts: {})
    measured("memory", "overhead")
    monkeypatch.setattr(import_benchmark("scale"), "COMMON", ())
    assert measured("memory")["parts"].keys() == {"memory", "overhead"}
    assert len(runs) == 3


def test_measure_workers__two_runs__scaling_is_their_ratio(
    script: ModuleType, measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One and two workers on one volume, with a thread each."""
    calls = []

    def run(command: Any) -> Any:
        calls.append(command)
        count = int(command.options[-1])
        return SimpleNamespace(seconds=9.0, report={"seconds": {"total": 8 / count, "segment": 6 / count**2}})

    monkeypatch.setattr(script, "run", run)
    part = measured("workers")["parts"]["workers"]
    assert (part["scaling"], part["scaling_segment"]) == (2, 4)
    assert [call.options[-2:] for call in calls] == [("--workers", "1"), ("--workers", "2")]
    assert len({call.volume for call in calls}) == 1


def test_voxels_different__changed_stores__counts_all_levels(tmp_path: Path) -> None:
    """Across slabs, and also in a level that nobody looks at."""
    volumes, kills = import_benchmark("scaling.volume"), import_benchmark("scaling.kills")
    stacks = volumes.Stacks(np.zeros((4, 8, 8), np.uint8), (45.0, 4.6, 4.6))
    one, other = (volumes.write_volume(stacks, tmp_path / name, (80, 600, 16)) for name in "ab")
    assert kills.voxels_different(one, other) == 0
    changed = zarr.open_group(other, mode="r+")
    for level, place in (("0", (0, 0, 0)), ("0", (79, 599, 15)), ("2", (79, 149, 3))):
        changed[level][place] = 1
    assert kills.voxels_different(one, other) == 3


def test_write_volume__stacks__are_mirrored_side_by_side_with_means_as_levels(tmp_path: Path) -> None:
    """Compared with NumPy's own padding; zarr-python and our reader read it."""
    volumes = import_benchmark("scaling.volume")
    write_stacks(tmp_path)
    files = [tmp_path / f"images{split}" / f"{name}_0000.nii.gz" for split, name, _ in STACKS]
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[:8, :128] for file in files]
    row = np.concatenate(arrays, axis=2)
    shape = (40, 1100, 250)
    store = volumes.write_volume(volumes.read_stacks(files), tmp_path, shape)
    expected = np.pad(row, [(0, -(-n // m) * m - m) for n, m in zip(shape, row.shape, strict=True)], "symmetric")
    group = zarr.open_group(store, mode="r")
    assert np.array_equal(group["0"][:], expected[:40, :1100, :250])
    coarse = expected[:40, :1100, :248].reshape(40, 275, 4, 62, 4).mean(axis=(2, 4))
    assert np.array_equal(group["2"][..., :62], np.rint(coarse))
    levels = open_store(str(store)).levels
    assert [level.grid.spacing for level in levels] == [(2.0, 1.0, 1.0), (2.0, 2.0, 2.0), (2.0, 4.0, 4.0)]
    assert {level.grid.unit for level in levels} == {"nm"}
    assert levels[2].grid.origin == (0.0, 1.5, 1.5)


def test_main__no_data__names_the_remedy(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, as of other benchmarks, whichever of data and models is not there."""
    monkeypatch.setattr(script, "use_threads", lambda count: None)
    places = ["--out", "o.json", "--data", "data", "--models", "models"]
    words = [word if word.startswith("--") else str(tmp_path / word) for word in places]
    assert script.main([*words, "--parts", "memory"]) == 2
    assert "models\n  Choose others by --models." in capsys.readouterr().err
    for model in import_benchmark("common.registry").load_dataset("em").models.values():
        (tmp_path / "models" / model).mkdir(parents=True)
        (tmp_path / "models" / model / "plans.json").touch()
    assert script.main([*words, "--parts", "memory"]) == 2
    assert "no test case of 'em'" in capsys.readouterr().err
