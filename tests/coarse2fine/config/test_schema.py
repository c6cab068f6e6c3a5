"""What may be set: the shipped files, and the page that lists all keys, against the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import assignnet
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import ORIGINAL_NAMES, Config

README = Path(__file__).parents[3] / "configs" / "README.md"
AGENT = {"features": "fine", "downsample_mode": "center", "start_label": False, "global_info": False}
# Typed in from the original system's table of parameters, one column per file.
ORIGINAL: dict[str, dict[str, Any]] = {
    "cremi": {
        "coarse": {"spacing": [40, 20, 20], "patch_size": None, "mirroring": True, "body_crop": None, "tile_step": 0.5},
        "rois": {
            "threshold": 0.001,
            "min_edge": 4.0,
            "min_voxels": 6.0,
            "heatmap_voxel": [3, 16, 16],
            "nms_threshold": 0.75,
            "nmm_threshold": 0.35,
            "window": [12, 128, 128],
        },
        "assign": {"lambda": 0.03, "pooling_mode": "max", **AGENT},
        "canvas": {"size": [24, 256, 256], "slot": [12, 128, 128]},
        "fine": {"postprocess": "crop_and_resize", "crop_threshold": [12, 128, 128], "use_prior": False},
    },
    "covid": {
        "coarse": {"spacing": None, "patch_size": [64, 96, 96], "mirroring": False, "tile_step": 0.5},
        "rois": {
            "threshold": 0.5,
            "min_edge": 0,
            "min_voxels": 0,
            "heatmap_voxel": [10, 16, 16],
            "nms_threshold": 0.7,
            "nmm_threshold": 0.2,
            "window": [56, 96, 96],
        },
        "assign": {"lambda": 0.05, "pooling_mode": "max", **AGENT},
        "canvas": {"size": [56, 192, 192], "slot": [56, 96, 96]},
        "fine": {"postprocess": "crop_and_resize", "crop_threshold": [56, 96, 96], "use_prior": False},
    },
    "word": {
        "coarse": {"spacing": None, "patch_size": None, "mirroring": False, "body_crop": None, "tile_step": 0.5},
        "rois": {
            "threshold": 0.9,
            "min_edge": 0,
            "min_voxels": 0,
            "heatmap_voxel": [3, 3, 3],
            "nms_threshold": 0.55,
            "nmm_threshold": 0.5,
            "window": [64, 74, 74],
        },
        "assign": {"lambda": 0.1275, "pooling_mode": "mean", **AGENT},
        "canvas": {"size": [288, 64, 64], "slot": [64, 64, 64]},
        # 64x74x74 in the original system, which has no room in the slot
        "fine": {"crop_threshold": [64, 64, 64], "mirroring": False, "use_prior": False},
    },
}
ORIGINAL["fafb"] = ORIGINAL["cremi"]  # the two columns differ only in how the coarse model was trained


def schema_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, str, Any]]:
    """Key, default, description and annotation of everything that a file may set, in order."""
    for name, field in model.model_fields.items():
        key = prefix + (field.serialization_alias or name)
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        sections = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if not sections or type(None) in kinds:
            yield key, "required" if field.is_required() else field.default, field.description or "", field.annotation
        for section in sections:
            yield from schema_keys(section, f"{key}.")


@pytest.mark.parametrize("name", ["demo", "covid", "word", "cremi", "fafb"])
def test_load_config__shipped_name__is_valid_and_names_no_model(name: str) -> None:
    """Every shipped file is found by its name and leaves the models to the user."""
    config = load_config(name)
    assert config.mode == "accelerated"
    assert config.coarse.model is None
    assert config.fine.model is None


@pytest.mark.parametrize("name", ORIGINAL)
def test_load_config__data_set_of_the_original_system__holds_its_values(name: str) -> None:
    """The shipped files carry the parameters of the original system."""
    values = load_config(name).to_dict()
    for section, expected in ORIGINAL[name].items():
        assert {key: values[section][key] for key in expected} == expected
    assert (values["coarse"]["body_crop"] is not None) == (name == "covid")


def test_readme__table_of_keys__equals_the_schema() -> None:
    """Keys, defaults, choices and meanings in the documentation are those of the code, in the same order."""
    lines = re.findall(r"^\| `([a-z_.]+)` \| [^|]* \| `([^|]*)` \| ([^|]*) \| ([^|]*) \|", README.read_text(), re.M)
    documented = [(key, default, meaning) for key, default, _, meaning in lines]
    expected = []
    for key, default, description, _ in schema_keys(Config):
        plain = list(default) if isinstance(default, tuple) else default
        expected.append((key, plain if isinstance(plain, str) else json.dumps(plain), description))
    assert documented == expected

    choices = {key: set(re.findall(r"`([^`]+)`", values)) for key, _, values, _ in lines}
    for key, _, _, annotation in schema_keys(Config):
        options = get_args(annotation)
        if options and all(isinstance(option, str) for option in options):
            assert choices[key] == set(options)


def test_readme__names_of_the_original_system__are_those_that_messages_point_to() -> None:
    """The table of old names equals the one in the code, and each leads to an existing key."""
    documented = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|$", README.read_text(), re.M))
    assert documented == ORIGINAL_NAMES
    assert set(ORIGINAL_NAMES.values()) <= {key for key, *_ in schema_keys(Config)}


def test_readme__agent__names_every_rule() -> None:
    """The table of keys lists the rules that there are."""
    values = re.search(r"^\| `assign.agent` \| [^|]* \| [^|]* \| ([^|]*) \|", README.read_text(), re.M)
    assert values is not None
    assert set(re.findall(r"`(\w+)`", values[1])) == set(assignnet.RULES)
