"""What a single value of a configuration may be, and how paths and names in it are understood."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, StringConstraints, ValidationInfo

import assignnet
from assignnet import RULES
from coarse2fine.config.validation import Expected, NameOrPath, did_you_mean


def model_folder(value: object, info: ValidationInfo) -> object:
    """Expands ``~`` and makes a path relative to the folder that the validation context names."""
    if not isinstance(value, str | Path):
        return value
    if not str(value).strip():
        raise ValueError("empty path")
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:  # ~name of a user that does not exist
        raise ValueError(str(error)) from error
    base = (info.context or {}).get("base")
    return path if base is None else Path(base) / path


def shipped_agents() -> dict[str, Path]:
    """The folders of the agents that come with the software, by name."""
    agents = Path(assignnet.__file__).parent / "agents"
    return {path.parent.name: path.parent for path in sorted(agents.glob("*/agent.json"))}


def agent_name(value: object, info: ValidationInfo) -> object:
    """Leaves the name of a rule or agent, known or not, as it is; makes a path absolute."""
    if not isinstance(value, str | Path):
        return value
    base = Path((info.context or {}).get("base") or Path.cwd())
    if is_agent_name(str(value), base):
        return str(value)
    return str(base / Path(str(model_folder(value, info))))


def is_agent_name(text: str, base: Path) -> bool:
    """Whether a text is to be understood as a name: it does not look like a path, and is no folder's unless known."""
    if text in RULES or text in shipped_agents():
        return True
    return not _is_path(text) and not (text.strip() and (base / text).is_dir())


def unknown_agent(name: str) -> str:
    """What is wrong with the name of an agent, and what it could be; empty for a known one, or a path."""
    rules, agents = list(RULES), list(shipped_agents())
    if name in rules or name in agents or _is_path(name):
        return ""
    question = did_you_mean(name, [*rules, *agents])
    return (
        f"no rule, agent or folder named '{name}'{'; ' + question if question else '.'} Rules: {', '.join(rules)}; "
        f"agents: {', '.join(agents) or 'none'}; or name the folder of an agent"
    )


def seconds(value: object) -> object:
    """A text such as ``30s``, ``5 m`` or ``1.5h`` in seconds, a bare number likewise; anything else as it is.

    >>> seconds("1.5 m"), seconds("90"), seconds(90), seconds("soon")
    (90.0, 90.0, 90, 'soon')
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+|[0-9]+\.)\s*([smh]?)\s*", value)
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else value


def _is_path(text: str) -> bool:
    return text.startswith("~") or text in (".", "..") or "/" in text or "\\" in text


# Numbers are strict: a quoted number, or `true` where a number belongs, is a mistake worth hearing about.
_Count = Annotated[int, Strict(), Field(gt=0)]
_Natural = Annotated[int, Strict(), Field(ge=0)]
_Length = Annotated[float, Strict(), Field(gt=0)]
Count = Annotated[_Count, Expected("a whole number above 0")]
Natural = Annotated[_Natural, Expected("a whole number, 0 or more")]
Number = Annotated[float, Strict(), Expected("a number")]
NonNegative = Annotated[float, Strict(), Field(ge=0), Expected("a number, 0 or more")]
Duration = Annotated[
    float,
    BeforeValidator(seconds),
    Strict(),
    Field(gt=0),
    Expected("a time above 0, as 30 (seconds), 30s, 5m or 1h"),
]
Fraction = Annotated[float, Strict(), Field(gt=0, le=1), Expected("a number above 0, at most 1")]
Probability = Annotated[float, Strict(), Field(ge=0, lt=1), Expected("a number from 0 to below 1")]
Size = Annotated[tuple[_Count, _Count, _Count], Expected("three whole numbers above 0, as [z, y, x]")]
Padding = Annotated[tuple[_Natural, _Natural, _Natural], Expected("three whole numbers, 0 or more, as [z, y, x]")]
Spacing = Annotated[tuple[_Length, _Length, _Length], Expected("three numbers above 0, as [z, y, x]")]
Folds = Annotated[
    tuple[_Natural | Literal["all"], ...], Field(min_length=1), Expected("a list such as [0, 1, 2] or [all]")
]
Interval = Annotated[
    tuple[Annotated[float, Strict()], Annotated[float, Strict()]], Expected("two numbers, the lower one first")
]
LabelNames = Annotated[
    tuple[Annotated[str, Strict()], ...],
    Expected("a list of label names, such as [liver, spleen] (a name that reads as a number in quotes)"),
]
ModelFolder = Annotated[Path, BeforeValidator(model_folder), Expected("the path of a folder")]
AgentName = Annotated[
    str,
    BeforeValidator(agent_name),
    NameOrPath(is_agent_name),
    Expected("the name of a rule or agent, or the path of an agent's folder"),
]
# At least one character that is not a dot, so that "." and ".." are no file names either.
FileName = Annotated[
    str, StringConstraints(pattern=r"^[^/\\]*[^/\\.][^/\\]*$"), Expected("the name of a file, without folders")
]
Device = Annotated[
    str, StringConstraints(pattern=r"^(auto|cpu|cuda(:[0-9]+)?|mps)$"), Expected("auto, cpu, cuda, cuda:N or mps")
]
Overlap = Literal["iou", "ios"]
