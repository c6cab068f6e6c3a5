"""The data sets of the benchmarks: ``datasets/*.yaml`` say where cases, references, models and settings are.

Data are never downloaded. Where they are missing, the error tells where to get them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from benchmarks.common.machine import ROOT, SHARED, relative
from coarse2fine.config.validation import ModelReader, did_you_mean
from coarse2fine.config.yaml import Origin, parse_yaml
from coarse2fine.errors import C2FError, ConfigError

FOLDER = Path(__file__).parents[1] / "datasets"
Split = Literal["test", "train"]
CASE = "{case}"
EXIT_ERROR, EXIT_MISSING = 1, 2


class MissingDataError(C2FError):
    """Data or models of a data set are not on this machine."""


class Files(BaseModel):
    """Where the files of a split lie, relative to ``data``; ``{case}`` stands for a case's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    reference: str = Field(description="True labels")
    image: str | None = Field(default=None, description="First channel; null = there are only references")


class Dataset(BaseModel):
    """One data set.

    Attributes are the keys of its file. ``models`` names model folders by role: ``coarse``, ``fine``, and where there
    are any ``small`` (trained at the size of a slot) and ``mosaic`` (trained on canvases).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(default="", description="Name of the file; not in the file itself")
    title: str = Field(description="What it shows, in a few words")
    stands_in_for: str | None = Field(default=None, description="Data set of the original system, if this is none")
    licence: str = Field(description="Of the data")
    source: str = Field(description="Where to get them")
    data: str = Field(description="Folder, relative to the repository")
    test: Files = Field(description="Cases to report on")
    train: Files | None = Field(default=None, description="Cases that models and settings were made with")
    config: str | None = Field(default=None, description="Settings: a file beside this folder, or a shipped name")
    models: Mapping[str, str] = Field(default={}, description="Model folders by role, below the model roots")
    merged: Mapping[str, tuple[int, ...]] = Field(
        default={}, description="Labels of the references that the models' first, second, ... is made of; {} = as it is"
    )
    quality: Literal["dice", "iou"] = Field(default="dice", description="The measure that counts most")
    tolerance: float = Field(default=1.0, gt=0, description="Of surface Dice, in the unit of the files' spacing")
    aim: float | None = Field(default=None, ge=0, le=1, description="Dice that the fine model is to reach everywhere")


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled case.

    Attributes:
        name: Of the case.
        split: Whether models and settings were made with it.
        image: File of the first channel; None if there is none.
        reference: File of the true labels.
    """

    name: str
    split: Split
    image: Path | None
    reference: Path


def dataset_names() -> list[str]:
    """All data sets there are files for."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_dataset(name: str) -> Dataset:
    """Read a data set's file.

    Raises:
        ConfigError: If there is none of that name, or its content is wrong.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        question = did_you_mean(name, dataset_names())
        raise ConfigError(f"no data set named '{name}'", f"{question} There are: {', '.join(dataset_names())}.".strip())
    tree = parse_yaml(path.read_text(encoding="utf-8"), lambda line: Origin(line, f"{path.name}:{line}"))
    dataset = ModelReader(Dataset, tree, {}, "benchmarks/common/registry.py explains every key.").validate(FOLDER)
    return dataset.model_copy(update={"name": name})


def find_case_files(dataset: Dataset, data: Path | None = None) -> list[Case]:
    """The cases that are on this machine: test cases first, each split by name.

    Args:
        dataset: Whose.
        data: Where the data lie, if elsewhere.

    Raises:
        MissingDataError: If no test case is there.
    """
    folder = data or ROOT / dataset.data
    cases = [*_split_cases(folder, dataset.test, "test")]
    if not cases:
        raise MissingDataError(
            f"no test case of '{dataset.name}': nothing matches {relative(folder)}/{dataset.test.reference}",
            f"Get the data: {dataset.source} Then name their folder by --data.",
        )
    return cases + (_split_cases(folder, dataset.train, "train") if dataset.train else [])


def _split_cases(folder: Path, files: Files, split: Split) -> list[Case]:
    before, _, after = files.reference.partition(CASE)
    cases = []
    for path in sorted(folder.glob(files.reference.replace(CASE, "*"))):
        text = path.relative_to(folder).as_posix()
        name = text[len(before) : len(text) - len(after)]
        image = folder / files.image.replace(CASE, name) if files.image else None
        if image is None or image.exists():
            cases.append(Case(name, split, image, path))
    return cases


def choose_case(dataset: Dataset, name: str | None = None, data: Path | None = None) -> Case:
    """One case: the named one, or the first test case; errors as ``find_case_files``."""
    cases = find_case_files(dataset, data)
    found = [case for case in cases if name in (None, case.name)]
    if not found:
        there = ", ".join(case.name for case in cases)
        raise MissingDataError(f"'{dataset.name}' has no case '{name}' here", f"There are: {there}.")
    return found[0]


def find_model(dataset: Dataset, role: str, source: str = "ours") -> Path:
    """The folder of a data set's model.

    Args:
        dataset: Whose.
        role: Such as ``coarse`` or ``fine``.
        source: ``ours``: the repository's own models, then the shared ones; ``shared``; or a folder laid out like them.

    Raises:
        MissingDataError: If there is none.
    """
    if role not in dataset.models:
        raise MissingDataError(f"'{dataset.name}' has no {role} model", f"Name one in datasets/{dataset.name}.yaml.")
    ours, shared = ROOT / "benchmarks" / "models", SHARED / "models"
    folders = {"ours": (ours, shared), "shared": (shared,)}.get(source, (Path(source),))
    found = [folder / dataset.models[role] for folder in folders]
    found = [folder for folder in found if (folder / "plans.json").exists()]
    if not found:
        places = " or ".join(map(relative, folders))
        raise MissingDataError(f"no {dataset.models[role]} in {places}", "Choose others by --models.")
    return found[0]


def config_file(dataset: Dataset) -> Path | str | None:
    """The settings of a data set, as ``load_config`` takes them."""
    if dataset.config is None or dataset.config.endswith(".yaml"):
        return dataset.config and FOLDER.parent / dataset.config
    return dataset.config


def exit_code(work: Callable[[], object], console: Console) -> int:
    """Do a script's work; errors that users can mend are printed without a traceback.

    Returns:
        0; 2 where data or models are missing; 1 for any other such error.
    """
    try:
        work()
    except C2FError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return EXIT_MISSING if isinstance(error, MissingDataError) else EXIT_ERROR
    return 0
