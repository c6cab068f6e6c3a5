"""How a configuration is read: shipped or own YAML files, and ``key=value`` overrides."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from coarse2fine.config.schema import ORIGINAL_NAMES, Config
from coarse2fine.config.validation import ModelReader, did_you_mean
from coarse2fine.config.yaml import Origin, YamlTree, parse_yaml
from coarse2fine.errors import ConfigError

_MAX_BYTES = 100_000  # the YAML parser is slow on purpose-made input; a configuration has a few thousand bytes


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> Config:
    """Reads the settings of a run.

    Args:
        path: A YAML file, or the name of a shipped one (``covid``); None means all defaults. Model folders that it
            names are relative to the file.
        overrides: Settings such as ``canvas.slot=[12, 128, 128]`` that win over the file's. Their values are YAML;
            model folders are relative to the current folder.

    Returns:
        The validated settings.

    Raises:
        ConfigError: With every problem of the file and of the overrides, one per line.

    Example:
        >>> load_config(None, ["rois.threshold=0.5"]).rois.threshold
        0.5
    """
    tree, base = YamlTree(), Path.cwd()
    if path is not None:
        file = _find(Path(path))
        tree, base = read_tree(file), file.absolute().parent
    reader = ModelReader(
        Config, tree, ORIGINAL_NAMES, f"{shipped_folder() / 'README.md'} lists every key and what it takes."
    )
    for number, text in enumerate(overrides):
        reader.override(text, Origin(_MAX_BYTES + number, f"--set {text}"))
    return reader.validate(base)


def shipped_config(name: str) -> Path:
    """The path of a configuration that comes with the software.

    Args:
        name: Its name without suffix, such as ``covid``.

    Raises:
        ConfigError: If there is none of that name.
    """
    shipped = _shipped()
    if name not in shipped:
        raise ConfigError(f"no configuration named '{name}'", _shipped_hint(name))
    return shipped[name]


def config_hash(config: Config) -> str:
    """A short fingerprint, equal for equal settings whatever file or override they came from.

    Example:
        >>> config_hash(Config()) == config_hash(load_config(None, ["rois.threshold=0.3"]))
        True
    """
    text = json.dumps(config.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shipped_folder() -> Path:
    """Where the shipped configurations and what explains them are."""
    package = Path(__file__).parents[1]
    in_wheel, in_checkout = package / "configs", package.parent / "configs"
    return in_wheel if in_wheel.is_dir() else in_checkout


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted(shipped_folder().glob("*.yaml"))}


def _shipped_hint(name: str) -> str:
    names = sorted(_shipped())
    question = did_you_mean(name, names).replace("did", "Did", 1)
    return f"{question} Shipped configurations: {', '.join(names)}; the name alone is enough.".lstrip()


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.suffix and path.name == str(path):
        return shipped_config(path.name)
    raise ConfigError(f"no configuration file at '{path}'", _shipped_hint(path.stem))


def read_tree(file: Path) -> YamlTree:
    """The values of a YAML file, with the problems of its text.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ConfigError(
                f"'{file}' is larger than {_MAX_BYTES} bytes",
                "Configurations have a few thousand: name another file, or take comments out of this one.",
            )
        text = file.read_bytes().decode("utf-8-sig")
    except PermissionError as error:
        raise ConfigError(
            f"'{file}' may not be read", f"Give yourself the right to: chmod u+r {shlex.quote(str(file))}"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read '{file}': {error.strerror}", "Copy it again, or name another file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{file}' is not UTF-8 text", "Save it as text in UTF-8.") from error
    return parse_yaml(text, lambda line: Origin(line, f"{file}:{line}"))
