"""The original system's experiments on a tiny data set with tiny models, so that they keep working; no real data."""

from __future__ import annotations

import gc
import io
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import benchmark_module, blobs, import_benchmark, write_agent
from raw_data import save_case
from rich.console import Console
from scipy.stats import spearmanr

from coarse2fine.errors import C2FError
from coarse2fine.evaluation.masks import dice
from coarse2fine.io import read_volume

SHAPE = (18, 40, 36)
SETTINGS = [
    "rois.threshold=0.52",
    "rois.window_step=0.5",
    "fine.grow=0",
    "canvas.size=[8, 32, 32]",
    "canvas.norm_tiles=1",
]
NAMES = [
    "selection", "capacity", "ordering", "resize_ratio", "packing", "large_volume", "splits", "roi_threshold",
    "slot_and_nms", "preferred_order", "network_size", "foreground_share", "neighbours",
]  # fmt: skip
ORDERS = ["policy-seed0", "space", "random-0", "random-1", "random-2"]
GEOMETRIC = {"resize_ratio", "packing", "roi_threshold"}


@pytest.fixture(scope="module", autouse=True)
def _little_garbage() -> Iterator[None]:
    """Every run collects garbage first; with all libraries loaded, looking through them takes longer than the run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


script = benchmark_module("experiments")
geometry = benchmark_module("studies.geometry")


@pytest.fixture(scope="module")
def dataset_folder(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test and a training case in nnU-Net's layout, and models by role."""
    root = tmp_path_factory.mktemp("data")
    for number, (split, case) in enumerate((("Ts", "b"), ("Tr", "a"))):
        voxels = blobs(SHAPE, seed=number)
        save_case(root, split, case, voxels, voxels > 130)
    folders = {"coarse": model_folder(spacing=(4.0, 2.0, 2.0), seed=3), "fine": model_folder(seed=6)}
    folders |= {"small": model_folder(seed=7), "fine_without_a": model_folder(seed=8)}
    for role, folder in folders.items():
        shutil.copytree(folder, root / "D" / role)
    return root


@pytest.fixture(scope="module")
def dataset() -> Any:
    registry = import_benchmark("common.registry")
    roles = ("coarse", "fine", "small", "fine_without_a", "mosaic")
    files = {
        split: {"image": f"images{split}/{{case}}_0000.nii.gz", "reference": f"labels{split}/{{case}}.nii.gz"}
        for split in ("Ts", "Tr")
    }
    about: dict[str, Any] = {"title": "tiny", "licence": "none", "source": "made up", "data": "nowhere"}
    about |= {"models": {role: f"D/{role}" for role in roles}}
    return registry.Dataset(name="tiny", test=files["Ts"], train=files["Tr"], **about)


@pytest.fixture(scope="module")
def bench(dataset: Any, dataset_folder: Path) -> Any:
    case = import_benchmark("common.registry").choose_case(dataset, data=dataset_folder)
    return import_benchmark("common.bench").Bench(dataset, case, source=str(dataset_folder), overrides=SETTINGS)


@pytest.fixture(scope="module")
def agents(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Untrained agents where experiments look for them; one of them was made for another packing."""
    folder, runs = tmp_path_factory.mktemp("agents"), import_benchmark("studies.measures")
    models = (bench.folder("coarse"), bench.folder("fine"))
    for kind in ("gains", "policy"):
        write_agent(folder / "tiny" / f"{kind}-seed0", models, SETTINGS, kind=kind)
    write_agent(folder / "tiny" / "gains-seed1", models, [*SETTINGS, "canvas.packing=same_size"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "AGENTS", folder)
        yield folder


@pytest.fixture(scope="module")
def outcome(
    script: ModuleType, bench: Any, agents: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """Runs an experiment once: its document, the folder with its files, and what it said."""
    done: dict[str, Any] = {}

    def run(name: str) -> Any:
        if name not in done:
            console = Console(file=io.StringIO(), record=True, width=200)
            path = script.run_experiment(name, bench, tmp_path_factory.mktemp(name), console)
            done[name] = (json.loads(path.read_text(), parse_constant=pytest.fail), path, console.export_text())
        return done[name]

    return run


@pytest.fixture(scope="module")
def rows(outcome: Callable[[str], Any]) -> Callable[[str], list[dict[str, Any]]]:
    return lambda name: outcome(name)[0]["rows"]


@pytest.fixture(scope="module")
def masks(geometry: ModuleType, dataset: Any, dataset_folder: Path) -> Any:
    """The same test case, of which only the reference is known."""
    registry = import_benchmark("common.registry")
    files = registry.Files(reference=dataset.test.reference)
    case = registry.choose_case(dataset.model_copy(update={"test": files, "models": {}}), data=dataset_folder)
    return geometry.MaskBench(dataset, case, [*SETTINGS, "rois.heatmap_voxel=[2, 3, 3]"])


def test_experiments__names__are_the_original_eleven_in_order_and_one_more(script: ModuleType) -> None:
    """They are found by the names that they have in the original system, and three can do without images."""
    assert list(script.EXPERIMENTS) == NAMES
    assert {name for name, one in script.EXPERIMENTS.items() if not one.needs_image} == GEOMETRIC


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_run_experiment__each__writes_flat_finite_rows_and_a_picture(outcome: Callable[[str], Any], name: str) -> None:
    """The JSON says what was measured with what and on what, and holds no path and no NaN."""
    document, path, _ = outcome(name)
    assert document.keys() >= {"experiment", "title", "rows", "environment", "config_hash", "seeds"}
    assert (document["experiment"], document["dataset"], document["case"]) == (name, "tiny", "b")
    assert document["rows"]
    for row in document["rows"]:
        assert row["dataset"] == "tiny"
        assert all(value is None or isinstance(value, str | int | float) for value in row.values())
        assert not any(isinstance(value, str) and "/" in value for value in row.values())
        assert all(0 <= row[name] <= 1 for name in ("fill", "dice", "iou", "volume_share", "mass_share") if name in row)
    pictures = [path.with_suffix(".png")] + ([path.with_name(f"{name}_case.jpg")] if name == "preferred_order" else [])
    starts = {".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff"}
    assert all(picture.read_bytes().startswith(starts[picture.suffix]) for picture in pictures)
    assert sorted(path.parent.iterdir()) == sorted([path, *pictures])


@pytest.mark.parametrize("name", NAMES)
def test_run_experiment__only_a_reference__runs_what_is_geometry(
    script: ModuleType, masks: Any, tmp_path: Path, name: str
) -> None:
    """Without image and models geometry is measured, and everything else says what is missing."""
    if name not in GEOMETRIC:
        with pytest.raises(C2FError, match="only a reference"):
            script.run_experiment(name, masks, tmp_path, Console(quiet=True))
        return
    assert {row["heatmap"] for row in script.EXPERIMENTS[name].run(masks, Console(quiet=True))} == {"reference"}


def test_run_experiment__unknown_name__names_the_likely_one(script: ModuleType, bench: Any, tmp_path: Path) -> None:
    """A slip of the pen gets a remedy."""
    with pytest.raises(C2FError, match="selection"):
        script.run_experiment("selecton", bench, tmp_path, Console(quiet=True))


@pytest.mark.long
def test_selection__rules_and_agents__have_the_quality_of_a_run_by_hand(
    rows: Callable[[str], Any], outcome: Callable[[str], Any], bench: Any, tmp_path: Path
) -> None:
    """Every rule and fitting agent has a row; one for another packing is left out and said."""
    found = {row["selection"]: row for row in rows("selection")}
    assert set(found) == {"all_parents", "all_children", "top_k", "greedy", "greedy_drop", "gains-seed0"}
    assert "gains-seed1 is left out" in outcome("selection")[2]
    bench.pipeline("assign.agent=top_k").run_files(bench.files, tmp_path / "by_hand.nii.gz")
    labels = read_volume([tmp_path / "by_hand.nii.gz"]).channels[0]
    assert found["top_k"]["dice"] == pytest.approx(dice(labels == 1, bench.reference == 1))
    assert found["top_k"]["boxes"] < found["all_parents"]["boxes"] < found["all_children"]["boxes"]
    assert found["top_k"]["mass_share"] < found["all_parents"]["mass_share"]


@pytest.mark.long
def test_capacity__one_crop_per_canvas__takes_as_many_canvases_as_boxes(rows: Callable[[str], Any]) -> None:
    """More crops on a canvas never take more canvases, and as few as there is room for."""
    for row in rows("capacity"):
        assert row["canvases"] == -(-row["boxes"] // row["capacity"])
        assert row["alone"] == (row["capacity"] == 1)
    assert [row["capacity"] for row in rows("capacity")] == [1, 4, 8] * 2
    at = {(row["norm"], row["capacity"]): row["dice"] for row in rows("capacity")}
    assert at["case", 1] == at["canvas", 1]
    assert at["case", 8] != at["canvas", 8]


@pytest.mark.long
def test_ordering__rows__cover_orders_packings_and_norms(rows: Callable[[str], Any]) -> None:
    """One selection in five orders; with shared statistics they differ."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows("ordering"):
        scores.setdefault((row["packing"], row["norm"]), {})[row["order"]] = row["dice"]
        assert row["chosen_by"] == "policy-seed0"
    assert {norm for packing, norm in scores if packing == "same_size"} == {"case", "slot", "canvas"}
    assert all(list(found) == ORDERS for found in scores.values())
    assert len(set(scores["same_size", "canvas"].values())) > 1


@pytest.mark.long
def test_neighbours__packed_regions__differ_from_regions_alone_by_norm_and_context(rows: Callable[[str], Any]) -> None:
    """Every norm and context, of the same regions on fewer canvases."""
    alone, *packed = rows("neighbours")
    assert (alone["norm"], alone["mismatch"], alone["canvases"]) == ("alone", 0, alone["boxes"])
    assert [(row["norm"], row["context"]) for row in packed] == list(
        product(("case", "slot", "canvas"), ("0 x 0 x 0", "0 x 2 x 2", "0 x 4 x 4"))
    )
    assert all(row["canvases"] < row["boxes"] == alone["boxes"] for row in packed)
    assert all(0 < row["mismatch"] <= 1 for row in packed)
    assert len({row["mismatch"] for row in packed}) == len(packed)


def test_segment__boxes_of_different_sizes__only_same_size_packing_depends_on_order(
    geometry: ModuleType, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same-scale packing sorts by size, so that only boxes of equal volumes could change places."""

    def spy(*arguments: Any, **options: Any) -> Any:
        result = segment_boxes(*arguments, **options)
        shown.append(sorted(sorted((one.source, one.slot) for one in canvas.placements) for canvas in result.canvases))
        return result

    runs, order = import_benchmark("studies.measures"), import_benchmark("selection.measures")
    real = geometry.real_case(bench)
    seen = order.look(real)
    regions = geometry.find_regions(
        bench, geometry.Heat(seen.scene.coarse.heatmap, seen.scene.view.shape), "rois.threshold=0.47"
    )
    placements = [placement for canvas in regions.canvases() for placement in canvas.placements]
    volumes = {placement.crop: placement.slot.volume for placement in placements}
    rois = list({volumes[crop]: roi for crop, roi in enumerate(regions.chosen)}.values())
    assert len(rois) > 8
    segment_boxes = runs.segment_boxes
    monkeypatch.setattr(runs, "segment_boxes", spy)
    for packing, depends in (("same_size", True), ("same_scale", False)):
        shown: list[Any] = []
        for some in (rois, rois[::-1]):
            runs.segment(bench, real, seen, some, f"canvas.packing={packing}", "fine.grow=0")
        assert (shown[0] != shown[1]) == depends


@pytest.mark.long
def test_resize_ratio__resize_only__is_edges_over_the_slots_they_are_shown_in(
    rows: Callable[[str], Any], geometry: ModuleType, bench: Any
) -> None:
    """Ratios follow from boxes and slots alone; cropping first never enlarges anything."""
    threshold = geometry.NMM_THRESHOLDS[4]
    found = {row["postprocess"]: row for row in rows("resize_ratio") if row["nmm_threshold"] == threshold}
    settings = (geometry.OVERLAPPING, "canvas.packing=same_size", f"rois.nmm_threshold={threshold}")
    regions = geometry.find_regions(bench, geometry.ground_of(bench).heat, *settings)
    boxes = [roi.box.shape for roi in regions.tree.parents]
    full, grid = len(boxes) // 8 * 8, {1: (8, 32, 32), 2: (8, 16, 16), 3: (8, 16, 16), 4: (8, 16, 16)}
    slots = [(4, 16, 16)] * full + [grid.get(len(boxes) - full, (4, 16, 16))] * (len(boxes) - full)
    ratios = np.mean(np.array(boxes) / slots, axis=0)
    for axis, ratio, edge in zip("zyx", ratios, np.mean(boxes, axis=0), strict=True):
        assert found["resize_only"][f"ratio_{axis}"] == pytest.approx(ratio)
        assert found["resize_only"][f"parent_edge_{axis}_voxels"] == pytest.approx(edge)
        assert found["crop_and_resize"][f"ratio_{axis}"] >= 1
    assert found["resize_only"]["ratio_x"] < 1


def test_find_regions__higher_nmm_threshold__never_merges_more(geometry: ModuleType, bench: Any) -> None:
    """Boxes that overlap by more overlap by less, too, so that groups only fall apart."""
    heat = geometry.ground_of(bench).heat
    counts = []
    for threshold in geometry.NMM_THRESHOLDS:
        settings = (geometry.OVERLAPPING, "rois.nmm_merging=transitive", f"rois.nmm_threshold={threshold}")
        tree = geometry.find_regions(bench, heat, "canvas.packing=same_size", *settings).tree
        counts.append(len(tree.parents))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_packed__window_or_agent_for_the_other_packing__is_left_out(
    geometry: ModuleType, masks: Any, dataset_folder: Path
) -> None:
    """What fits into a canvas would be shrunk to a slot; what was chosen for this packing stays."""
    for packing, window in (("same_size", None), ("same_scale", (7, 24, 24))):
        settings = geometry.packed(masks, packing)
        assert masks.config("rois.window=[7, 24, 24]", *settings).rois.window == window
    trained = type(masks)(masks.dataset, masks.case, [*SETTINGS, f"assign.agent={dataset_folder}"])
    assert trained.config(*geometry.packed(trained, "same_scale")).assign.agent == "greedy"  # agents fit one packing


@pytest.mark.long
def test_packing__four_times_the_volume__has_more_boxes_and_no_less_fill(rows: Callable[[str], Any]) -> None:
    """Fill is a share, context counts as filled but not as wanted, and there are real runs of both packings."""
    geometric = {(row["packing"], row["volume_times"]): row for row in rows("packing") if row["kind"] == "geometry"}
    real = {row["packing"]: row for row in rows("packing") if row["kind"] == "run"}
    for packing in ("same_size", "same_scale"):
        small, large = geometric[packing, 1], geometric[packing, 4]
        assert large["boxes"] > 2 * small["boxes"]
        assert all(0 < row["wanted"] < row["fill"] <= 1 for row in (small, large))
        assert real[packing]["canvases"] == small["canvases"]
        assert real[packing]["fill"] == pytest.approx(small["fill"])


@pytest.mark.long
def test_large_volume__nnunet__is_extrapolated_by_tiles(rows: Callable[[str], Any]) -> None:
    """Seconds beyond twice the volume follow the number of tiles, and slopes the measured volumes."""
    runs = {(row["mode"], row["volume_times"]): row for row in rows("large_volume") if row["kind"] == "run"}
    assert {key for key, row in runs.items() if row["extrapolated"]} == {("nnunet", 4), ("nnunet", 8), ("nnunet", 16)}
    # 16 x 39 x 34 voxels are not empty, mirrored along x 39 x 72, then along y 78 x 72, then along x 78 x 144. Tiles of
    # 8 x 16 x 16 lie half a tile apart.
    for times, tiles in ((1, 3 * 4 * 4), (2, 3 * 4 * 8), (4, 3 * 9 * 8), (8, 3 * 9 * 17)):
        assert runs["nnunet", times]["canvases"] == tiles
        assert runs["nnunet", times]["gvoxels"] == pytest.approx(times * np.prod(SHAPE) / 1e9)
    assert runs["nnunet", 8]["total_s"] == pytest.approx(runs["nnunet", 2]["total_s"] * 459 / 96)
    slope = next(row for row in rows("large_volume") if row["kind"] == "slope" and row["mode"] == "nnunet")
    pair = [runs["nnunet", times] for times in (1, 2)]
    rise = (pair[1]["total_s"] - pair[0]["total_s"]) / (pair[1]["gvoxels"] - pair[0]["gvoxels"])
    assert slope["s_per_gvoxel"] == pytest.approx(rise)


@pytest.mark.long
def test_splits__cases__say_whether_their_model_was_trained_on_them(rows: Callable[[str], Any]) -> None:
    """A cross-fitted model counts as one that has not seen the case; means are over cases alike."""
    found = {(row["case"], row["model"], row["mode"]): row for row in rows("splits") if row["kind"] == "case"}
    known = {key[:2]: (row["split"], row["trained_on"]) for key, row in found.items()}
    assert known == {
        ("b", "fine"): ("test", False),
        ("a", "fine"): ("train", True),
        ("a", "fine_without_a"): ("train", False),
    }
    assert found["a", "fine", "one-stage"]["dice"] != found["a", "fine_without_a", "one-stage"]["dice"]
    summary = next(
        r for r in rows("splits") if r["kind"] == "summary" and not r["trained_on"] and r["mode"] == "one-stage"
    )
    scores = [found["b", "fine", "one-stage"]["iou"], found["a", "fine_without_a", "one-stage"]["iou"]]
    assert summary["iou"] == pytest.approx(np.mean(scores))
    assert (summary["iou_least"], summary["iou_greatest"]) == (min(scores), max(scores))
    assert summary["iou_deviation"] == pytest.approx(np.std(scores, ddof=1))


@pytest.mark.long
def test_roi_threshold__rising__loses_recall_and_cost(rows: Callable[[str], Any]) -> None:
    """What lies above a threshold lies above every lower one; boxes hold all of it."""
    found = rows("roi_threshold")
    for name in ("voxels_above", "objects_above"):
        values = [row[name] for row in found]
        assert values == sorted(values, reverse=True)
        assert values[0] > values[-1]
    assert all(row["voxels_in_boxes"] >= row["voxels_above"] for row in found)
    assert found[0]["volume_share"] > found[-1]["volume_share"]


@pytest.mark.long
def test_roi_threshold__one_threshold__counts_what_loops_count(
    rows: Callable[[str], Any], geometry: ModuleType, bench: Any
) -> None:
    """Shares of reference voxels, voxel by voxel."""
    row = next(row for row in rows("roi_threshold") if row["threshold"] == 0.5)
    ground = geometry.ground_of(bench)
    chosen = geometry.find_regions(bench, ground.heat, "rois.threshold=0.5").chosen
    points = np.argwhere(ground.truth)
    centres = (points + 0.5) / ground.truth.shape
    values = [ground.heat.values[tuple((centre * ground.heat.values.shape).astype(int))] for centre in centres]
    assert row["voxels_above"] == pytest.approx(np.mean(np.array(values) > 0.5))
    places = centres * ground.heat.volume
    held = [any((roi.box.start <= place).all() and (place < roi.box.stop).all() for roi in chosen) for place in places]
    assert row["voxels_in_boxes"] == pytest.approx(np.mean(held))


def test_find_regions__masks_without_canvas_size__say_what_to_set(geometry: ModuleType, masks: Any) -> None:
    """There is no model whose patch could stand in."""
    with pytest.raises(C2FError, match=r"canvas\.size"):
        geometry.find_regions(masks, geometry.ground_of(masks).heat, "canvas.size=null")


@pytest.mark.long
def test_slot_and_nms__few_real_runs__and_a_slot_as_large_as_the_canvas_holds_one_crop(
    rows: Callable[[str], Any],
) -> None:
    """Geometry covers the whole grid of settings, the network a part of it."""
    found = rows("slot_and_nms")
    assert sum(row["measured"] for row in found) <= 10
    slots = {row["slot"]: row for row in found if row["varied"] == "slot"}
    assert [slots[name]["slot_voxels"] for name in ("quarter", "half", "full")] == ["4x8x8", "4x16x16", "4x32x32"]
    assert slots["full"]["canvases"] * 2 >= slots["full"]["boxes"]
    grid = [row for row in found if row["varied"] == "nms"]
    assert len({(row["window_step"], row["nms_threshold"]) for row in grid}) == len(grid) == 12
    assert all(("dice" in row) == row["measured"] for row in grid)


@pytest.mark.long
def test_preferred_order__agents__ranks_correlate_as_scipy_says(rows: Callable[[str], Any]) -> None:
    """Picks are numbered in the order of choice; a quantity that never changes has no correlation."""
    found = rows("preferred_order")
    for name in ("policy-seed0", "gains-seed0", "greedy"):
        picks = [row for row in found if row["kind"] == "pick" and row["chosen_by"] == name]
        assert [row["rank"] for row in picks] == list(range(1, len(picks) + 1))
        for row in found:
            if row["kind"] == "correlation" and row["chosen_by"] == name:
                values = [pick[row["with"]] for pick in picks]
                expected = spearmanr(range(len(picks)), values).statistic if len(set(values)) > 1 else None
                assert row["spearman"] == (expected if expected is None else pytest.approx(expected))
    assert found[0]["chosen_by"] == "policy-seed0"


@pytest.mark.long
def test_network_size__roles_with_models__count_their_parameters(
    rows: Callable[[str], Any], outcome: Callable[[str], Any], bench: Any
) -> None:
    """A role without a model is left out and said."""
    found = {row["role"]: row for row in rows("network_size")}
    assert set(found) == {"small", "fine"}
    assert "role mosaic is left out" in outcome("network_size")[2]
    weights = bench.model("small").networks[0].state_dict()
    shared = {value.data_ptr(): value.numel() for value in weights.values()}  # the decoder names the encoder's, too
    assert found["small"]["parameters"] == sum(shared.values())
    assert found["small"]["patch"] == "8x16x16"
    assert found["small"]["ms_per_mvoxel"] > 0
