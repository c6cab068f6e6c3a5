"""Folders of trainings: each belongs to one, whose settings lie in it, so that the same command can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coarse2fine.errors import ConfigError, OutputError
from coarse2fine.io import atomic_write, make_own
from coarse2fine.system.terminal import shown


def claim(folder: Path, name: str, wanted: Mapping[str, Any], what: str = "pretraining") -> None:
    """Make the folder this training's, or see that it is.

    Args:
        folder: Of the training; made if it is not there.
        name: Of the file in it that says all that the result depends on.
        wanted: What it is to say, as JSON has it.
        what: Kind of training, for messages.

    Raises:
        OutputError: If it holds something else, or cannot be written.
        ConfigError: If it is another training's, naming the first setting that differs.
    """
    try:
        make_own(folder, private=False)
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error.strerror}", "Choose another folder.") from error
    path = folder / name
    if path.exists():
        known = _read_card(path)
        for key in (*wanted, *known):
            if known.get(key) != wanted.get(key):
                raise ConfigError(
                    f"{folder} holds a {what} with other settings: {key} is {shown(known.get(key))} there, "
                    f"{shown(wanted.get(key))} here",
                    "Choose another folder (-o); to begin it with the weights of this one, add --weights.",
                )
        return
    others = [other.name for other in sorted(folder.iterdir()) if not other.name.startswith(".")]
    if others:
        raise OutputError(f"{folder} holds other things, such as {shown(others[0])}", "Choose a new folder (-o).")
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(dict(wanted), indent=1), encoding="utf-8")


def _read_card(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise ConfigError(f"{path} is damaged", "Choose another folder (-o).")
    return known
