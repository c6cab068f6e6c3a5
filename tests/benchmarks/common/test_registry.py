"""The benchmarks' data sets and how they measure memory; real data are never run here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import benchmark_module, shared

from coarse2fine.config.reader import load_config
from coarse2fine.errors import ConfigError

NAMES = [
    "brain", "brain_half_mm", "brain_tiny", "covid", "covid_masks", "cremi", "em", "fafb", "head_neck", "lung", "ms",
    "organs", "word",
]  # fmt: skip


registry = benchmark_module("common.registry")
machine = benchmark_module("common.machine")


def put(folder: Path, *names: str) -> Path:
    """Empty files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_dataset_names__the_folder__are_all_known_here(registry: ModuleType) -> None:
    """Nobody adds a data set without its checks below."""
    assert registry.dataset_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_load_dataset__every_file__is_complete(registry: ModuleType, name: str) -> None:
    """Licence and source are said, settings fit the schema and leave the models open."""
    dataset = registry.load_dataset(name)
    assert dataset.name == name
    assert dataset.licence
    assert dataset.source
    config = load_config(registry.config_file(dataset))
    assert config.coarse.model is None
    assert config.fine.model is None
    assert dataset.test.image is None or {"coarse", "fine"} <= dataset.models.keys()


@pytest.mark.parametrize("name", ["lung", "em", "ms"])
def test_load_dataset__stand_ins__leave_mirroring_to_the_command_line(registry: ModuleType, name: str) -> None:
    """--mirroring is for all that are compared."""
    assert not load_config(registry.config_file(registry.load_dataset(name))).fine.mirroring


def test_load_dataset__misspelt__says_which_there_are(registry: ModuleType) -> None:
    """The message holds a suggestion."""
    with pytest.raises(ConfigError, match=r"no data set named 'lungs'\n.*'lung'"):
        registry.load_dataset("lungs")


def test_load_dataset__wrong_key__names_its_line(
    registry: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of one's own is checked like a configuration."""
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    text = (Path(registry.__file__).parents[1] / "datasets" / "em.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("licence:", "license:"))
    with pytest.raises(ConfigError, match=r"(?s)licence is missing.*mine.yaml:3: .*license"):
        registry.load_dataset("mine")


def test_find_case_files__two_splits__lists_test_cases_first(registry: ModuleType, tmp_path: Path) -> None:
    """A case counts if image and reference are there; its name is what stands for {case}."""
    put(tmp_path, *(f"{kind}{split}/{case}" for kind, split, case in [
        ("labels", "Ts", "b.nii.gz"), ("images", "Ts", "b_0000.nii.gz"), ("labels", "Ts", "no_image.nii.gz"),
        ("labels", "Tr", "a.nii.gz"), ("images", "Tr", "a_0000.nii.gz"),
    ]))  # fmt: skip
    cases = registry.find_case_files(registry.load_dataset("em"), tmp_path)
    assert [(case.name, case.split) for case in cases] == [("b", "test"), ("a", "train")]
    assert cases[0].image == tmp_path / "imagesTs/b_0000.nii.gz"
    assert registry.choose_case(registry.load_dataset("em"), None, tmp_path).name == "b"
    assert registry.choose_case(registry.load_dataset("em"), "a", tmp_path).split == "train"
    with pytest.raises(registry.MissingDataError, match=r"no case 'c' here\n.*b, a"):
        registry.choose_case(registry.load_dataset("em"), "c", tmp_path)


def test_find_case_files__only_references__have_no_image(registry: ModuleType, tmp_path: Path) -> None:
    """Masks alone are enough for rows that look at geometry."""
    put(tmp_path, "volume-covid19-A-0003_seg.nii.gz")
    (case,) = registry.find_case_files(registry.load_dataset("covid_masks"), tmp_path)
    assert (case.name, case.image) == ("0003", None)


def test_find_case_files__nothing_there__says_where_to_get_it(registry: ModuleType, tmp_path: Path) -> None:
    """The error is what a user of the real data sets sees first."""
    with pytest.raises(registry.MissingDataError, match=r"cremi\.org"):
        registry.find_case_files(registry.load_dataset("cremi"), tmp_path)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["covid_masks", "em", "lung", "ms", "organs"])
def test_find_case_files__shared_data__are_where_the_file_says(registry: ModuleType, name: str) -> None:
    """Stand-ins exist where developers have them."""
    assert shared("data") == registry.SHARED / "data"
    assert registry.choose_case(registry.load_dataset(name)).split == "test"


def test_find_model__several_sources__takes_the_chosen_one(
    registry: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own weights win over shared ones unless the shared ones or another folder are asked for."""
    monkeypatch.setattr(registry, "ROOT", tmp_path / "repository")
    monkeypatch.setattr(registry, "SHARED", tmp_path / "shared")
    dataset = registry.load_dataset("em").model_copy(
        update={"models": {"fine": "D/both", "coarse": "D/one", "small": "D/none"}}
    )
    put(tmp_path, *(f"{folder}/plans.json" for folder in (
        "repository/benchmarks/models/D/both", "shared/models/D/both", "shared/models/D/one", "mine/D/both"
    )))  # fmt: skip
    assert registry.find_model(dataset, "fine") == tmp_path / "repository/benchmarks/models/D/both"
    assert registry.find_model(dataset, "fine", "shared") == tmp_path / "shared/models/D/both"
    assert registry.find_model(dataset, "coarse") == tmp_path / "shared/models/D/one"
    assert registry.find_model(dataset, "fine", str(tmp_path / "mine")) == tmp_path / "mine/D/both"
    with pytest.raises(registry.MissingDataError, match="no D/none in"):
        registry.find_model(dataset, "small")
    with pytest.raises(registry.MissingDataError, match="'em' has no mosaic model"):
        registry.find_model(dataset, "mosaic")


@pytest.mark.alone
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset its memory peak")
def test_peak_memory__freed_array__counts_until_the_next_reset(machine: ModuleType) -> None:
    """A run's peak holds what it has already freed, the next run's does not."""
    memory = machine.PeakMemory()
    memory.reset()
    before = memory.read_mb()
    if before is None:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    array = np.ones(200_000_000, np.uint8)
    del array
    during = memory.read_mb()
    memory.reset()
    assert during - before > 150
    assert memory.read_mb() - before < 100


def test_peak_memory__elsewhere__is_unknown(machine: ModuleType, tmp_path: Path) -> None:
    """Where there is no such file, there is no figure, and no error."""
    memory = machine.PeakMemory(tmp_path / "no-proc")
    memory.reset()
    assert memory.read_mb() is None
