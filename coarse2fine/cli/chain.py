"""Chains of pretrainings as YAML: stages one after the other, each of which begins with the weights of the last one.

The keys of a stage are the options of ``c2f-pretrain``, so whatever that can learn, a stage can.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, create_model

from coarse2fine.config.reader import read_tree, shipped_folder
from coarse2fine.config.types import ModelFolder
from coarse2fine.config.validation import Expected, ModelReader, did_you_mean
from coarse2fine.config.yaml import Keys, YamlTree
from coarse2fine.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

NOT_OF_A_STAGE = ("help", "version", "print_completion", "output", "weights", "chain", "domain", "device")
"""Options that are the whole chain's."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_REMEDY = "The keys of a stage are name, domain and the options of c2f-pretrain, see docs/pretraining.md."
_TASK_REMEDY = "The keys of a task are the options of c2f-finetune."


@dataclass(frozen=True, slots=True)
class Stage:
    """One pretraining.

    Attributes:
        name: Of its folder.
        domain: Whose images it learns from, if the chain names folders by domain.
        options: Values of options that it has, by their names in the parsed command line.
    """

    name: str
    domain: str | None
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chain:
    """Pretrainings one after the other.

    Attributes:
        about: What it is for.
        domains: Folders of images by name.
        stages: At least one.
        task: Options of ``c2f-finetune``, which is run after the last stage; or a command that is printed then,
            in which ``{weights}`` and ``{nnunet}`` stand for files of the last stage; None: neither.
    """

    about: str
    domains: Mapping[str, Path]
    stages: tuple[Stage, ...]
    task: str | Mapping[str, Any] | None


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    about: str = Field(default="", description="What the chain is for")
    domains: Annotated[dict[str, ModelFolder], Expected("folders by name")] = Field(default={}, description="Of images")
    stages: Annotated[tuple[Any, ...], Expected("a list of stages")] = Field(min_length=1, description="In their order")
    task: Annotated[str | dict[str, Any] | None, Expected("a command, or options of c2f-finetune")] = Field(
        default=None, description="What comes after the last stage"
    )


def load_chain(path: Path, parser: argparse.ArgumentParser, task_parser: argparse.ArgumentParser) -> Chain:
    """Read a chain.

    Args:
        path: A YAML file, or the name of a shipped one. Folders that it names are relative to the file.
        parser: Of ``c2f-pretrain``, whose options are the keys of stages.
        task_parser: Of ``c2f-finetune``, whose options are the keys of the task.

    Raises:
        ConfigError: With every problem, one per line.
    """
    file = _find(path)
    tree, problems = read_tree(file), list[str]()

    def validated(model: type[M], part: YamlTree, remedy: str) -> M | None:
        try:
            return ModelReader(model, part, {}, remedy).validate(file.absolute().parent)
        except ConfigError as error:
            problems.extend(error.problem.splitlines())
            return None

    root: Mapping[str, Any] = tree.root if isinstance(tree.root, dict) else {}
    given, task = root.get("stages"), root.get("task")
    document = validated(_Document, tree, _REMEDY)
    model, count = stage_model(parser), len(given) if isinstance(given, list) else 0
    found = [validated(model, _part(tree, ("stages", number)), _REMEDY) for number in range(count)]
    if isinstance(task, dict):
        filled = validated(options_model("Task", task_parser), _part(tree, ("task",)), _TASK_REMEDY)
        task = {} if filled is None else _values(filled)
    stages = tuple(_stage(one) for one in found if one is not None)
    names = [stage.name for stage in stages]
    problems += [f"{file}: two stages are called '{name}'" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems or document is None:
        raise ConfigError("\n".join(problems), _REMEDY)
    return Chain(document.about, document.domains, stages, task)


def stage_model(parser: argparse.ArgumentParser) -> type[BaseModel]:
    """A model whose keys are the options of a command, and what a stage has besides."""
    name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$"), Expected("letters, digits, - and _, for a folder")]
    domain = (str | None, Field(default=None, description="Whose images it learns from"))
    return options_model("Stage", parser, name=(name, ...), domain=domain)


def options_model(title: str, parser: argparse.ArgumentParser, **more: Any) -> type[BaseModel]:
    """A model whose keys are the options of a command, by their names in the parsed command line."""
    known = {
        action.dest: (_type_of(action), Field(default=None, description=action.help))
        for action in parser._actions
        if action.dest not in NOT_OF_A_STAGE and action.option_strings
    }
    fields: dict[str, Any] = {**more, **known}
    return create_model(title, __config__=ConfigDict(frozen=True, extra="forbid"), **fields)


def _type_of(action: argparse.Action) -> Any:
    """What a value of an option may be in YAML."""
    if isinstance(action, argparse._StoreTrueAction | argparse.BooleanOptionalAction):
        return Annotated[bool, Strict(), Expected("true or false")] | None
    if action.choices is not None:
        return Literal[tuple(action.choices)] | None
    known: dict[Any, Any] = {
        int: Annotated[int, Strict(), Expected("a whole number")],
        float: Annotated[float, Strict(), Expected("a number")],
        Path: Annotated[ModelFolder, Expected("the path of a file or folder")],
    }
    single: Any = known.get(action.type, str)
    if isinstance(action, argparse._AppendAction):
        # Users of the command write NAME=VALUE; in YAML that is a section.
        return Annotated[list[str], BeforeValidator(_pairs), Expected("a section of names and values")] | None
    if action.nargs is not None and action.nargs != "?":
        return Annotated[list[single], Expected("a list")] | None
    return single | None


def _pairs(value: object) -> object:
    """A section as a list of NAME=VALUE; anything else as it is."""
    return [f"{key}={one}" for key, one in value.items()] if isinstance(value, dict) else value


def _stage(model: BaseModel) -> Stage:
    values = _values(model)
    return Stage(values.pop("name"), values.pop("domain", None), values)


def _values(model: BaseModel) -> dict[str, Any]:
    """What was given."""
    return {name: value for name, value in model if value is not None}


def _part(tree: YamlTree, keys: Keys) -> YamlTree:
    """What is below some keys, as a tree of its own, with names of options as the parsed command line has them."""
    root: Any = tree.root
    for key in keys:
        root = root[key]
    if isinstance(root, dict):
        root = {str(name).replace("-", "_"): value for name, value in root.items()}
    origins = {}
    for path, origin in tree.origins.items():
        if path[: len(keys)] == keys:
            first, rest = path[len(keys) : len(keys) + 1], path[len(keys) + 1 :]
            origins[(*(str(one).replace("-", "_") for one in first), *rest)] = origin
    return YamlTree(root, origins)


def images_of(stage: Stage, chain: Chain, given: Mapping[str, Path]) -> Path | None:
    """The folder that a stage learns from; None if it names none.

    Args:
        stage: Of the chain.
        chain: Has folders of its own.
        given: Folders by domain that win over the chain's.

    Raises:
        ConfigError: If its domain has no folder.
    """
    if stage.domain is None:
        found: Path | None = stage.options.get("images")
        return found
    folders = {**chain.domains, **given}
    if stage.domain not in folders:
        raise ConfigError(
            f"the stage {stage.name} learns from images of the domain {stage.domain}, which has no folder",
            f"Name it: --domain {stage.domain}=DIR.",
        )
    return folders[stage.domain]


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted((shipped_folder() / "pretrain").glob("*.yaml"))}
    if str(path) in shipped:
        return shipped[str(path)]
    question = did_you_mean(path.stem, shipped).replace("did", "Did", 1)
    remedy = f"{question} Shipped ones are {', '.join(shipped)}; the name alone is enough.".lstrip()
    raise ConfigError(f"no chain at '{path}'", remedy)


def domains_of(texts: Sequence[str]) -> dict[str, Path]:
    """Folders by domain, from NAME=DIR.

    Raises:
        ConfigError: If one is not written so.
    """
    for text in texts:
        if not (text.partition("=")[0] and text.partition("=")[2]):
            raise ConfigError(f"--domain {text!r} names no domain or no folder", "Write --domain NAME=DIR.")
    return {name: Path(folder) for name, _, folder in (text.partition("=") for text in texts)}
