"""From labelled cases to instances on disk: built once, again when anything is different, and split by case."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import blobs
from raw_data import save_case, save_volume

from assignnet.value.instance import Instance, write_instances
from assignnet.value.synthetic import synthetic_instance
from coarse2fine.config.reader import load_config
from coarse2fine.errors import C2FError, VolumeError
from coarse2fine.io import LabelledCase, find_labelled_cases
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.selection.features import FeatureSettings
from coarse2fine.training.dataset import (
    FEW,
    build_instances,
    cached_instances,
    how_made,
    split_instances,
)
from coarse2fine.training.outcomes import OutcomeSettings

SHAPE = (12, 32, 32)
SETTINGS = OutcomeSettings(variants=1, regions=1)
ABOUT: dict[str, Any] = {"cases": ["a", "b"], "settings": {"variants": 8, "rate": 0.5}, "seed": 0, "fine": "abc"}


@dataclass(frozen=True)
class Lab:
    """Two models and settings that find regions with them."""

    coarse: Model
    fine: Model
    options: tuple[str, ...] = ("rois.threshold=0.58", "canvas.packing=same_size", "fine.mirroring=false", "device=cpu")

    def build(self, cases: Sequence[LabelledCase], **options: Any) -> list[Instance]:
        config = load_config(None, list(self.options))
        return build_instances(cases, self.coarse, self.fine, config, FeatureSettings("none"), SETTINGS, **options)

    def made(
        self,
        cases: Sequence[LabelledCase],
        *overrides: str,
        features: FeatureSettings | None = None,
        settings: OutcomeSettings = SETTINGS,
        seed: int = 0,
    ) -> dict[str, Any]:
        config = load_config(None, [*self.options, *overrides])
        return how_made(cases, self.coarse, self.fine, config, features or FeatureSettings(), settings, seed)


@pytest.fixture(scope="module")
def lab(model_folder: Callable[..., Path]) -> Lab:
    return Lab(load_model(model_folder(seed=5, spacing=(4.0, 2.0, 2.0))), load_model(model_folder(seed=10)))


def truth(seed: int) -> np.ndarray:
    image = blobs(SHAPE, seed=seed)
    return (image > np.percentile(image, 80)).astype(np.uint8)


def write_cases(folder: Path, count: int) -> Path:
    """Labelled volumes in nnU-Net's raw layout."""
    for index in range(count):
        save_case(folder, "Tr", f"c{index}", blobs(SHAPE, seed=index), truth(index))
    return folder


@pytest.fixture
def cases(tmp_path: Path) -> list[LabelledCase]:
    return find_labelled_cases(write_cases(tmp_path / "data", 2), 1)


# --- building


def test_build_instances__few_cases__each_has_a_part_for_validation(lab: Lab, cases: list[LabelledCase]) -> None:
    """The parts of a volume are instances of different "cases", so that splitting by case keeps them apart."""
    told: list[tuple[int, int]] = []
    instances = lab.build(cases, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    assert {one.case for one in instances} == {f"c{n}/{part}" for n in (0, 1) for part in ("train", "validation")}
    for part, share in (("train", 0.7), ("validation", 0.3)):  # of the longest axis of what nnU-Net crops to
        longest = max(one.tree.volume[1] for one in instances if one.case.endswith(part))
        assert 0.8 * share * SHAPE[1] < longest <= share * SHAPE[1] + 1
    assert {one.case.split("/")[1] for one in lab.build(cases, split=False)} == {"whole"}


def test_build_instances__enough_cases__are_held_out_whole(lab: Lab, tmp_path: Path) -> None:
    """From four cases on, a volume is for learning or for validation, never for both."""
    instances = lab.build(find_labelled_cases(write_cases(tmp_path, FEW), 1))
    assert {instance.case for instance in instances} == {f"c{index}/whole" for index in range(FEW)}
    learn, held = split_instances(instances)
    assert {instance.case for instance in held} == {f"c{FEW - 1}/whole"}
    assert len(learn) + len(held) == len(instances)


def test_build_instances__seed__fixes_all_but_repeats_in_no_case(lab: Lab, cases: list[LabelledCase]) -> None:
    """The same seed gives the same trees; sub-volumes of two cases are drawn differently, and so with another seed."""
    image = cases[0].images[0]
    twin = replace(cases[0], images=(shutil.copy(image, image.with_name("twin_0000.nii.gz")),))
    one, two = (lab.build([cases[0], twin], split=False) for _ in range(2))
    assert [a.tree for a in one] == [a.tree for a in two]
    trees = [[a.tree for a in one if a.case.startswith(case)] for case in ("c0", "twin")]
    assert trees[0][0] == trees[1][0], "the whole volumes are the same"
    assert trees[0] != trees[1]
    assert [a.tree for a in lab.build([cases[0], twin], split=False, seed=5)] != [a.tree for a in one]


@pytest.mark.parametrize("value", [257, -1, 0.5, 7], ids=["wraps to 1", "negative", "fraction", "unknown"])
def test_build_instances__values_that_are_no_labels__are_refused(
    lab: Lab, cases: list[LabelledCase], value: float
) -> None:
    """Numbers of instances, or probabilities, would silently teach nonsense; the message names the file."""
    kind = np.float32 if value == 0.5 else np.int16
    save_volume(cases[1].labels, np.where(truth(1), value, 0).astype(kind))
    with pytest.raises(VolumeError, match=r"labelsTr/c1\.nii\.gz: its values go from .* to .*, the model's labels are"):
        lab.build(cases[1:])


def test_build_instances__ignored_voxels__are_allowed(
    lab: Lab, cases: list[LabelledCase], model_folder: Callable[..., Path]
) -> None:
    """The label "ignore" is the model's, too, although the model never gives it."""
    fine = load_model(model_folder(seed=10, labels={"background": 0, "lesion": 1, "ignore": 2}))
    labels = truth(0)
    labels[:3][labels[:3] == 0] = 2
    save_volume(cases[0].labels, labels)
    instances = replace(lab, fine=fine).build(cases[:1], split=False)
    assert instances
    assert {instance.outcomes.classes for instance in instances} == {(1,)}


def test_build_instances__labels_of_another_shape__are_told_with_the_case(lab: Lab, cases: list[LabelledCase]) -> None:
    """Labels must lie on the image's grid."""
    save_volume(cases[0].labels, truth(0)[1:])
    with pytest.raises(VolumeError, match="c0"):
        lab.build(cases)


# --- what instances depend on


def test_how_made__anything_that_matters_changes__is_different(
    lab: Lab, cases: list[LabelledCase], model_folder: Callable[..., Path]
) -> None:
    """Files, models, settings of the pipeline, of features and of teaching, the seed: each leads to other instances."""
    other = load_model(model_folder(seed=7))
    variants = [
        lab.made(cases),
        lab.made(cases[:1]),
        lab.made(cases[::-1]),
        lab.made(cases, "rois.threshold=0.6"),
        lab.made(cases, "canvas.packing=same_scale"),
        lab.made(cases, "coarse.spacing=[4, 3, 3]"),
        lab.made(cases, "coarse.foreground=[lesion]"),
        lab.made(cases, "fine.folds=[0]"),
        lab.made(cases, "assign.budget=3"),
        lab.made(cases, features=FeatureSettings(pooling_mode="mean")),
        lab.made(cases, settings=replace(SETTINGS, variants=2)),
        lab.made(cases, seed=1),
        replace(lab, fine=other).made(cases),
        replace(lab, coarse=other).made(cases),
    ]
    os.utime(cases[1].labels, (1, 1))
    variants.append(lab.made(cases))
    save_volume(cases[0].images[0], truth(3))
    variants.append(lab.made(cases))
    assert len({json.dumps(made, sort_keys=True) for made in variants}) == len(variants)


def test_how_made__what_does_not_matter__is_left_out(lab: Lab, cases: list[LabelledCase], tmp_path: Path) -> None:
    """Who chooses, for what lambda, on which device, and where folders lie: none of it is a reason to build anew."""
    first = lab.made(cases)
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = find_labelled_cases(tmp_path / "moved", 1)
    same = lab.made(moved, "assign.agent=all_parents", "assign.lambda=0.4", "device=auto", "fine.model=somewhere")
    assert same == first
    assert json.loads(json.dumps(first)) == first, "as it comes back from a file"


# --- keeping them


def example(seed: int) -> Instance:
    return synthetic_instance(np.random.default_rng(seed), 6, features=2)


class Builder:
    """Makes instances, and counts how often."""

    def __init__(self, seed: int = 0) -> None:
        self.calls, self.instances = 0, [example(seed), example(seed + 1)]

    def __call__(self) -> list[Instance]:
        self.calls += 1
        return self.instances


def assert_same(one: Sequence[Instance], other: Sequence[Instance]) -> None:
    assert [(a.name, a.case, a.tree, a.cost_model) for a in one] == [
        (a.name, a.case, a.tree, a.cost_model) for a in other
    ]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.features.nodes, b.features.nodes)
        np.testing.assert_array_equal(a.outcomes.count, b.outcomes.count)


def test_cached_instances__made_in_the_same_way__are_read(tmp_path: Path) -> None:
    """What was built once is not built again, however its description is written down (tuples become lists)."""
    builder, path = Builder(), tmp_path / "instances.h5"
    built = cached_instances(path, ABOUT, builder)
    again = cached_instances(path, {**dict(reversed(ABOUT.items())), "cases": ("a", "b")}, builder)
    assert builder.calls == 1
    assert_same(built, builder.instances)
    assert_same(again, builder.instances)
    assert [file.name for file in tmp_path.iterdir()] == ["instances.h5"]


@pytest.mark.parametrize(
    "changed",
    [
        ABOUT | {"seed": 1},
        ABOUT | {"cases": ["b", "a"]},
        ABOUT | {"settings": {"variants": 8, "rate": 0.25}},
        ABOUT | {"new": None},
        {name: value for name, value in ABOUT.items() if name != "fine"},
    ],
    ids=["value", "order", "nested", "more", "less"],
)
def test_cached_instances__made_in_another_way__are_replaced(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Any difference counts, and the new ones are kept."""
    path, other = tmp_path / "instances.h5", Builder(5)
    cached_instances(path, ABOUT, Builder())
    assert_same(cached_instances(path, changed, other), other.instances)
    assert_same(cached_instances(path, changed, other), other.instances)
    assert other.calls == 1


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.6, 0.9, 0.999])
def test_cached_instances__file_cut_off__is_built_again(tmp_path: Path, share: float) -> None:
    """A disk that filled up, or a copy that was interrupted, is no reason to fail."""
    path, other = tmp_path / "instances.h5", Builder(5)
    cached_instances(path, ABOUT, Builder())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_same(cached_instances(path, ABOUT, other), other.instances)
    assert other.calls == 1
    assert_same(cached_instances(path, ABOUT, other), other.instances)
    assert other.calls == 1


@pytest.mark.parametrize("what", ["junk", "another format", "no description", "a part is missing", 1024, 1500])
def test_cached_instances__file_that_is_not_ours__is_built_again(tmp_path: Path, what: str | int) -> None:
    """Another program's file, another version's, a damaged one."""
    path, other = tmp_path / "instances.h5", Builder(5)
    write_instances(path, Builder().instances, ABOUT)
    if what == "junk":
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 20)
    elif isinstance(what, int):  # a lost block
        content = path.read_bytes()
        path.write_bytes(content[:what] + bytes(128) + content[what + 128 :])
    else:
        with h5py.File(path, "a") as file:
            if what == "another format":
                file.attrs["format"] = "coarse2fine assign instances 0"
            elif what == "no description":
                del file.attrs["about"]
            else:
                del file["000001/parent"]
    assert_same(cached_instances(path, ABOUT, other), other.instances)
    assert other.calls == 1


def test_cached_instances__building_fails__leaves_what_was_there(tmp_path: Path) -> None:
    """An interruption costs neither the old instances nor leaves half of the new ones."""
    path, builder = tmp_path / "instances.h5", Builder()
    cached_instances(path, ABOUT, builder)

    def fail() -> list[Instance]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_instances(path, ABOUT | {"seed": 1}, fail)
    cached_instances(path, ABOUT, builder)
    assert builder.calls == 1
    assert [file.name for file in tmp_path.iterdir()] == ["instances.h5"]


def test_cached_instances__no_such_folder__is_told(tmp_path: Path) -> None:
    """A path that cannot be written is the user's to mend."""
    with pytest.raises(C2FError, match=r"cannot write .*gone/instances\.h5"):
        cached_instances(tmp_path / "gone" / "instances.h5", ABOUT, Builder())


# --- splitting


def of(*cases: str) -> list[Instance]:
    """Two instances of each case."""
    return [replace(example(0), name=f"{case}/{index}", case=case) for case in cases for index in range(2)]


@pytest.mark.parametrize(
    ("instances", "held"),
    [
        (of("a/train", "a/validation", "b/train", "b/validation"), {"a/validation", "b/validation"}),
        (of("a/train", "b/train", "b/validation"), {"b/validation"}),
        (of(*(f"{name}/whole" for name in "abcd")), {"d/whole"}),
        (of(*(f"{name}/whole" for name in "abcdefghij")), {"i/whole", "j/whole"}),
        (of(*(f"{name}/whole" for name in "abc")), {"c/whole"}),
    ],
    ids=["parts", "a case without a part", "four", "ten", "only three of the cases have regions"],
)
def test_split_instances__any_cases__no_case_is_on_both_sides(instances: list[Instance], held: set[str]) -> None:
    """Parts named so, else the last fifth of the cases, at least one; all instances are on one side."""
    learn, validate = split_instances(instances)
    assert {instance.case for instance in validate} == held
    assert {instance.case for instance in learn} == {instance.case for instance in instances} - held
    assert len(learn) + len(validate) == len(instances)


@pytest.mark.parametrize("cases", [[], ["a/whole"], ["a/train"]])
def test_split_instances__too_few__leaves_a_side_empty(cases: list[str]) -> None:
    """One case cannot be on both sides; the caller finds out."""
    learn, validate = split_instances(of(*cases))
    assert not learn
    assert len(validate) == 2 * len(cases)
