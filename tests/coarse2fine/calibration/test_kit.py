"""Kits: written in one step, and opened only if all of it is there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from coarse2fine.calibration.kit import check_replaceable, files_of, is_kit, open_kit, write_kit
from coarse2fine.config.reader import load_config
from coarse2fine.errors import ConfigError, OutputError
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model

SETTINGS = {"mode": "two-stage", "coarse": {"tile_step": 0.7}}


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., Path]) -> Model:
    return load_model(model_folder(folds=("0", "1")))


def write(folder: Path, model: Model, *, overwrite: bool = False) -> Path:
    about, page = {"promise": "much"}, "<!doctype html>"
    write_kit(folder, SETTINGS, model, "checkpoint_final.pth", {"cases": []}, about, page, overwrite=overwrite)
    return folder


def test_write_kit__model_of_two_folds_and_settings__open_from_where_the_kit_lies(model: Model, tmp_path: Path) -> None:
    """Settings are kept beside the folder of the coarse model, which is the kit's own and has all folds."""
    kit = write(tmp_path / "new" / "kit", model)
    moved = kit.rename(tmp_path / "moved")
    config = load_config(open_kit(moved))
    assert (config.mode, config.coarse.tile_step, config.coarse.model) == ("two-stage", 0.7, moved / "coarse")
    assert load_model(moved / "coarse").folds == ("0", "1")
    card = json.loads((moved / "card.json").read_text())
    assert (card["version"], card["promise"]) == (1, "much")
    assert card["files"].keys() == {
        "config.yaml",
        "calibration.json",
        "page.html",
        *(f"coarse/{name}" for name in ("plans.json", "dataset.json")),
        *(f"coarse/fold_{fold}/checkpoint_final.pth" for fold in "01"),
    }


@pytest.mark.parametrize("files", [None, [], {}, {"calibration.json": "0"}], ids=str)
def test_open_kit__card_without_its_files__is_mended_by_a_new_kit(model: Model, tmp_path: Path, files: object) -> None:
    """One without settings is none, whatever else it lists."""
    kit = write(tmp_path / "kit", model)
    card = json.loads((kit / "card.json").read_text())
    (kit / "card.json").write_text(json.dumps(card | {"files": files}))
    with pytest.raises(ConfigError, match="lists no files") as caught:
        open_kit(kit)
    assert "make it anew" in caught.value.remedy
    assert open_kit(write(kit, model, overwrite=True)) == kit / "config.yaml"


@pytest.mark.parametrize("absolute", [False, True])
def test_open_kit__file_outside_of_its_folder__is_none_of_its_files(
    absolute: bool, model: Model, tmp_path: Path
) -> None:
    """Not even if it is there and is what the card says."""
    kit, secret = write(tmp_path / "kit", model), tmp_path / "secret"
    secret.write_text("mine")
    card = json.loads((kit / "card.json").read_text())
    name = str(secret) if absolute else "../secret"
    known = {name: hashlib.sha256(secret.read_bytes()).hexdigest()}
    (kit / "card.json").write_text(json.dumps(card | {"files": card["files"] | known}))
    with pytest.raises(ConfigError, match=f"lacks its file {name}"):
        open_kit(kit)


def test_write_kit__place_that_cannot_hold_it__remedy_works(model: Model, tmp_path: Path) -> None:
    """Here the folder above is a file; nothing is left behind."""
    (tmp_path / "a").write_text("mine")
    with pytest.raises(OutputError, match="cannot write the kit") as caught:
        write(tmp_path / "a" / "kit", model)
    assert caught.value.remedy.startswith("Check that you may write there")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "a").unlink()
    assert is_kit(write(tmp_path / "a" / "kit", model))


def test_check_replaceable__whatever_is_there__another_folder_is_free(model: Model, tmp_path: Path) -> None:
    """A kit is replaced if that is asked for; links, files and folders of others never are."""
    kit = write(tmp_path / "kit", model)
    (tmp_path / "link").symlink_to(kit)
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "card.json").mkdir(parents=True)
    for name in ("link", "broken", "file", "folder"):
        with pytest.raises(OutputError, match="exists and is no kit") as caught:
            check_replaceable(tmp_path / name, True)
        assert caught.value.remedy == "Choose another folder with -o."
    with pytest.raises(OutputError, match="holds a kit"):
        check_replaceable(kit, False)
    check_replaceable(kit, True)
    check_replaceable(tmp_path / "another", False)


def test_files_of__file_that_was_written_again__is_another(tmp_path: Path) -> None:
    """By its time, even if it is as long as before; its folder does not count."""
    path = tmp_path / "a"
    path.write_text("old")
    os.utime(path, ns=(1, 1))
    before = files_of([path])
    assert before == [["a", 3, 1]]
    path.write_text("new")
    assert files_of([path]) != before
