"""Coarse models with other labels than the fine one's: which labels count, and where both need the same ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from large_volumes import write_image
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from coarse2fine.coarse.foreground import MOST_SHOWN, counted_heads, counted_names
from coarse2fine.coarse.heatmap import CoarseResult, CoarseStage, predict_heatmap
from coarse2fine.config.reader import load_config
from coarse2fine.errors import C2FError, ConfigError, ModelError
from coarse2fine.io import Grid, Volume
from coarse2fine.large.execution.engine import in_process
from coarse2fine.large.output import plan_output
from coarse2fine.large.report import StoreReport
from coarse2fine.large.run import segment_store
from coarse2fine.large.source import Source
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model, nnunet_predictor
from coarse2fine.pipeline import Pipeline, Result
from coarse2fine.preprocessing.working_grid import open_view

SHAPE, SPACING = (12, 32, 32), (2.0, 1.0, 1.0)
BINARY = {"background": 0, "anything": 1}
CLASSES = {"background": 0, "liver": 1, "spleen": 2, "tumour": 3}
QUICK = ("fine.mirroring=false", "fine.grow=0", "fine.tile_step=1")
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3}
Models = tuple[Path, Path]


@pytest.fixture(scope="module")
def folders(model_folder: Callable[..., Path]) -> dict[str, Path]:
    """Coarse models by their labels, and fine ones of three labels."""
    low = partial(model_folder, spacing=(4.0, 2.0, 2.0))
    return {
        "binary": low(labels=BINARY, seed=5),
        "classes": low(labels=CLASSES, seed=6),
        "regions": low(labels=REGIONS, regions_class_order=(1, 2, 3), seed=7),
        "ignore": low(labels={**CLASSES, "ignore": 4}, seed=6),
        "fine": model_folder(labels=CLASSES, seed=8),
        "binary fine": model_folder(labels=BINARY, seed=8),
        "cascade": model_folder(labels=CLASSES, cascade=True, seed=9),
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Model]:
    """The same, loaded."""
    return {kind: load_model(folder) for kind, folder in folders.items()}


def run(models: Models, *overrides: str) -> Result:
    coarse, fine = models
    image = blobs(SHAPE)
    named = [f"coarse.model={coarse}", f"fine.model={fine}", *QUICK]
    config = load_config(None, [*named, *overrides])
    return Pipeline.from_config(config)(Volume((image,), Grid(SHAPE, SPACING), "blobs"))


def run_store(folder: Path, models: Models, *overrides: str) -> StoreReport:
    image = write_image(folder / "in.zarr", blobs(SHAPE))
    work = folder / "work"
    output = plan_output(str(folder / "out.zarr"), objects=False, overwrite=True, inputs=str(image), work=work)
    config = load_config(None, [f"coarse.model={models[0]}", f"fine.model={models[1]}", *QUICK, *overrides])
    with in_process() as engine:
        return segment_store(config, Source(str(image)), output, work, engine)


def look(model: Model, *names: str) -> CoarseResult:
    """The coarse result with these labels; of none, with all that count by default."""
    listed = [f"coarse.foreground=[{', '.join(names)}]"] if names else []
    view = open_view([blobs(SHAPE)], SPACING, model)
    return predict_heatmap(CoarseStage(model, model, load_config(None, listed).coarse), view)


# --- which labels count ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classes", "regions"])
def test_predict_heatmap__some_labels__is_what_nnunets_own_probabilities_say(
    kind: str, models: dict[str, Model]
) -> None:
    """The sum over the named classes, or the most probable of the named regions, for every choice of names."""
    model = models[kind]
    view = open_view([blobs(SHAPE)], SPACING, model)
    predictor = nnunet_predictor(model, tile_step=0.5, mirroring=False)
    logits = predictor.predict_logits_from_preprocessed_data(view.read(view.window))
    manager = LabelManager(dict(model.labels.names), model.dataset.get("regions_class_order"))
    first = 0 if manager.has_regions else 1
    probabilities = manager.apply_inference_nonlin(logits).numpy()[first:]
    names = [name for name in model.labels.names if name != "background"]
    for count in (1, 2, 3):
        for chosen in combinations(names, count):
            parts = probabilities[[names.index(name) for name in chosen]]
            expected = parts.max(0) if manager.has_regions else parts.sum(0)
            np.testing.assert_allclose(look(model, *chosen).heatmap, expected, atol=2e-3, err_msg=str(chosen))
    assert np.abs(look(model, names[0]).heatmap - look(model).heatmap).max() > 0.1


@pytest.mark.parametrize("kind", ["binary", "classes", "regions", "ignore"])
def test_predict_heatmap__all_names__is_the_default_bit_for_bit(kind: str, models: dict[str, Model]) -> None:
    """In whatever order they are named."""
    model = models[kind]
    names = list(model.labels.head_of)
    for listed in (names, names[::-1]):
        np.testing.assert_array_equal(look(model, *listed).heatmap, look(model).heatmap)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_counted_heads__any_choice__does_not_depend_on_its_order(models: dict[str, Model], data: st.DataObject) -> None:
    """What counts is a set; all of it is the same as no choice, and its names are those that were chosen."""
    model = models[data.draw(st.sampled_from(["classes", "regions", "ignore"]))]
    names = data.draw(st.lists(st.sampled_from(list(model.labels.head_of)), unique=True, min_size=1))
    heads = counted_heads(names, model)
    assert heads == counted_heads(sorted(names), model)
    assert (heads is None) == (len(names) == 3)
    assert counted_names(names, model) == (
        None if heads is None else [name for name in model.labels.names if name in names]
    )


@pytest.mark.parametrize("kind", ["classes", "regions", "ignore"])
@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "found [], so that nothing would be looked for"),
        (["{first}", "{first}"], "'{first}' is named 2 times"),
        (["background"], "'background' is background"),
        (["{first}x"], "'{first}x' is no label in {dataset}; did you mean '{first}'?"),
        (["{first}", "zzz"], "'zzz' is no label in {dataset}"),
        ([""], "'' is no label in {dataset}"),
        (["1"], "'1' is no label in {dataset}"),
        (["zzz", "background"], "'zzz' is no label in {dataset}; 'background' is background"),
        (["\x1b[2J"], r"'\x1b[2J' is no label in {dataset}"),
    ],
)
def test_pipeline__names_that_cannot_count__are_refused_with_those_that_can(
    kind: str, names: Sequence[str], says: str, models: dict[str, Model]
) -> None:
    """The message has key, value and file, the names that exist, and what was probably meant; the remedy works."""
    model = models[kind]
    known = list(model.labels.head_of)
    fill = {"first": known[0], "dataset": model.folder / "dataset.json"}
    listed = json.dumps([name.format(**fill) for name in names])
    with pytest.raises(ConfigError) as caught:
        Pipeline(load_config(None, [f"coarse.foreground={listed}"]), model, models["fine"])
    assert caught.value.problem == f"coarse.foreground: {says.format(**fill)}"
    remedy = re.search(r"has the (regions|foreground labels) (.*): list those", caught.value.remedy)
    assert remedy is not None
    assert (remedy[1] == "regions") == (kind == "regions")
    offered = [name.strip("'") for name in remedy[2].split(", ")]
    assert offered == known
    assert str(fill["dataset"]) in caught.value.remedy
    for value in (f"[{', '.join(offered[1:])}]", "null"):
        Pipeline(load_config(None, [f"coarse.foreground={value}"]), model, models["fine"])


@pytest.mark.parametrize(("kind", "says"), [("ignore", "nobody decided on"), ("classes", "'ignore' is no label")])
def test_pipeline__ignore_label__is_refused_as_what_it_is(kind: str, says: str, models: dict[str, Model]) -> None:
    """No network finds it, and where there is none its name is like any other."""
    with pytest.raises(ConfigError, match=says):
        Pipeline(load_config(None, ["coarse.foreground=[liver, ignore]"]), models[kind], models["fine"])


# --- other labels than the fine model's ------------------------------------------------------------------------------


def with_the_foreground_of(folder: Path, binary: Path) -> Path:
    """Give a model of more classes the network of a binary one: its foreground becomes the first class."""
    path, source = (one / "fold_all" / "checkpoint_final.pth" for one in (folder, binary))
    checkpoint, given = (torch.load(one, weights_only=False) for one in (path, source))
    for name, values in checkpoint["network_weights"].items():
        new = given["network_weights"][name]
        values[: len(new)] = new
        if len(values) > len(new):  # an output layer: other classes have no weight, and a low constant
            values[len(new) :] = -100 if values.ndim == 1 else 0
    torch.save(checkpoint, path)
    return folder


@pytest.mark.parametrize("mode", ["accelerated", "two-stage"])
def test_run__binary_coarse_model__gives_what_one_of_the_same_labels_and_foreground_gives(
    mode: str, folders: dict[str, Path], model_folder: Callable[..., Path]
) -> None:
    """The fine model's own labels come out; of the coarse one nothing but its foreground matters."""
    same = with_the_foreground_of(model_folder(labels=CLASSES, spacing=(4.0, 2.0, 2.0)), folders["binary"])
    options = [f"mode={mode}", "rois.threshold=0.55"]
    binary, equal = (run((coarse, folders["fine"]), *options) for coarse in (folders["binary"], same))
    np.testing.assert_array_equal(binary.labels, equal.labels)
    assert binary.boxes == equal.boxes
    assert len(binary.boxes) > 3
    assert len(np.unique(binary.labels)) > 2  # more than the coarse model has
    assert binary.report.coverage == equal.report.coverage
    assert binary.report.warnings == ()


def test_run__some_labels__finds_other_regions_and_says_which_counted(folders: dict[str, Path], tmp_path: Path) -> None:
    """Less of the volume is looked at; what could get lost so is a warning, also in a store's report."""
    models = folders["classes"], folders["fine"]
    everything, some = (run(models, "rois.threshold=0.45", f"coarse.foreground={of}") for of in ("null", "[spleen]"))
    assert everything.report.config["coarse"]["foreground"] is None
    assert some.report.config["coarse"]["foreground"] == ["spleen"]
    assert 0 < some.report.coverage.volume < everything.report.coverage.volume
    assert (some.labels != everything.labels).any()
    (warning,) = some.report.warnings
    assert warning.startswith("coarse.foreground leaves out 'liver', 'tumour', which both models segment")
    report = run_store(tmp_path, models, "rois.threshold=0.45", "coarse.foreground=[spleen]")
    assert report.warnings == some.report.warnings
    assert report.config["coarse"]["foreground"] == ["spleen"]


@pytest.mark.parametrize(
    ("coarse", "fine", "overrides"),
    [
        ("classes", "fine", ["coarse.foreground=[tumour, liver, spleen]"]),
        ("regions", "fine", ["coarse.foreground=[whole]"]),  # what is left out lies in it
        ("classes", "binary fine", ["coarse.foreground=[liver]"]),  # the fine model does not know the others
        ("classes", "fine", ["coarse.foreground=[liver]", "fine.outside=coarse"]),  # keeps what the coarse model found
        ("classes", "fine", ["coarse.foreground=[liver]", "mode=one-stage"]),
    ],
)
def test_pipeline__nothing_can_get_lost__does_not_warn(
    coarse: str, fine: str, overrides: list[str], folders: dict[str, Path]
) -> None:
    """A warning that is no news is none."""
    assert run((folders[coarse], folders[fine]), "rois.threshold=0.4", *overrides).report.warnings == ()


NEEDS = {
    "outside": ("fine", ["fine.outside=coarse"], "fine.outside: coarse writes coarse labels into the result"),
    "two-stage": ("fine", ["fine.outside=coarse", "mode=two-stage"], "fine.outside: coarse writes coarse labels"),
    "cascade": ("cascade", ["fine.use_prior=true"], "fine.use_prior hands the coarse labels to {fine} (3d_cascade"),
    "one-stage": ("cascade", ["fine.use_prior=true", "mode=one-stage"], "fine.use_prior hands the coarse labels to"),
}


@pytest.mark.parametrize("coarse", ["binary", "regions"])
@pytest.mark.parametrize("need", NEEDS)
def test_pipeline__coarse_labels_would_stand_for_fine_ones__must_be_the_same(
    coarse: str, need: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The message says what needs them and shows both, in memory and for a store alike; the remedies work."""
    fine, overrides, says = NEEDS[need]
    models = folders[coarse], folders[fine]
    with pytest.raises(ModelError) as caught:
        run(models, *overrides)
    said = caught.value
    assert said.problem.startswith(says.format(fine=models[1]))
    shown = (
        "{'background': 0, 'anything': 1}" if coarse == "binary" else "'inner': 3} with regions_class_order [1, 2, 3]"
    )
    assert f"{shown} in {models[0]}" in said.problem
    assert f"{{'background': 0, 'liver': 1, 'spleen': 2, 'tumour': 3}} in {models[1]}" in said.problem
    if need != "one-stage":  # a cascade is no one-stage model of a store, whatever its labels
        with pytest.raises(C2FError, match=re.escape(str(said))):
            run_store(tmp_path, models, *overrides)
        assert not (tmp_path / "work").exists()

    if coarse == "binary":
        check_remedy(said.remedy, models, (folders["classes"], folders["fine"]), overrides)


def check_remedy(remedy: str, models: Models, good: Models, overrides: list[str]) -> None:
    """Do what it says; ``good`` are a coarse model of the fine one's labels, and a fine model that is no cascade."""
    (coarse, fine), named = models, ["rois.threshold=0.4", *overrides]
    if fine == good[1]:
        assert remedy == "Set fine.outside: background, or use two models trained on the same labels."
        run(models, *named, "fine.outside=background")
        run(good, *named)
    else:
        assert remedy == (
            "Use the coarse model that the cascade was trained with, or with fine.use_prior: false a 3d_fullres model."
        )
        run((good[0], fine), *named)
        run((coarse, good[1]), *named, "fine.use_prior=false")


def test_pipeline__one_stage_mode__needs_no_coarse_labels(folders: dict[str, Path]) -> None:
    """The coarse model is not asked there."""
    for coarse in ("binary", "regions"):
        result = run((folders[coarse], folders["fine"]), "mode=one-stage", "fine.outside=coarse")
        assert result.report.warnings == ()


def test_pipeline__models_of_very_many_labels__are_told_apart_at_bearable_length(
    folders: dict[str, Path], model_folder: Callable[..., Path]
) -> None:
    """As of a model of the whole body: some of its labels, and how many more there are."""
    for more in (1, 105 - MOST_SHOWN):
        names = [f"structure_{index}" for index in range(1, MOST_SHOWN + more)]
        many = model_folder(labels={"background": 0, **{name: index for index, name in enumerate(names, 1)}})
        with pytest.raises(ModelError, match=f"and {more} more") as caught:
            run((many, folders["fine"]), "fine.outside=coarse")
        assert len(str(caught.value)) < 2000
    result = run((many, folders["fine"]), "coarse.foreground=[structure_7, structure_90]", "rois.threshold=0.02")
    assert len(result.boxes) > 0
