"""A kit: a folder with settings, a coarse model and what was measured; ``c2f-infer -c KIT`` needs nothing else.

| file | what |
|---|---|
| ``config.yaml`` | settings, with the promise |
| ``coarse/`` | the coarse model, a folder that nnU-Net itself can use |
| ``calibration.json`` | what was measured on each case |
| ``page.html`` | the same for people, with pictures |
| ``card.json`` | the kit's version, its files' checksums, the fine model's folder, software |

A kit is data of a stranger: nothing in it is executed, and its card says how to tell that it is complete. Whoever wants
to deceive can write another card; checksums find damage, not malice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from coarse2fine.errors import ConfigError, OutputError
from coarse2fine.io import atomic_folder
from coarse2fine.nnunet.model import Model
from coarse2fine.report import versions

VERSION = 1
CARD, SETTINGS, CALIBRATION, COARSE = "card.json", "config.yaml", "calibration.json", "coarse"
PAGE = "page.html"
_MOST_BYTES = 1_000_000  # of a card; one has some thousand


def is_kit(folder: Path) -> bool:
    """Whether a folder says that it is a kit."""
    return (folder / CARD).is_file()


def open_kit(folder: Path) -> Path:
    """The settings of a kit, after a look at whether all of it is there.

    Args:
        folder: The kit.

    Raises:
        ConfigError: If it is of a later version, or a file is missing or was changed.
    """
    anew = "Copy the kit again as a whole, or make it anew (c2f-prepare)."
    card = _read_card(folder / CARD, anew)
    version, files = card.get("version"), card.get("files")
    if not isinstance(version, int) or version > VERSION:
        raise ConfigError(
            f"the kit {folder} has version {version!r:.20}, and this software knows versions up to {VERSION}",
            "Update coarse2fine, or make the kit anew with this version (c2f-prepare).",
        )
    if not isinstance(files, dict) or SETTINGS not in files:
        raise ConfigError(f"{folder / CARD} lists no files", anew)
    for name, known in files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
            raise ConfigError(f"the kit {folder} lacks its file {name[:200]}", anew)
        if _checksum(path) != known:
            raise ConfigError(
                f"the kit's file {path} is not what it was when the kit was made",
                f"{anew} To change settings, use --set.",
            )
    return folder / SETTINGS


def _read_card(path: Path, anew: str) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} is larger than {_MOST_BYTES} bytes", anew)
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", anew) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON file", anew) from error
    if not isinstance(card, dict):
        raise ConfigError(f"{path} is no card of a kit", anew)
    return card


def write_kit(
    folder: Path,
    settings: Mapping[str, Any],
    coarse: Model,
    checkpoint: str,
    calibration: Mapping[str, Any],
    about: Mapping[str, Any],
    page: str,
    *,
    overwrite: bool,
) -> None:
    """Write a kit in one step: nobody sees a half of it, and one that is there stays if anything fails.

    Args:
        folder: The kit.
        settings: What stands in its ``config.yaml``, but for the coarse model's folder.
        coarse: The coarse model, whose files are copied.
        checkpoint: Name of its checkpoint files.
        calibration: For ``calibration.json``.
        about: Further entries of the card.
        page: HTML, for people.
        overwrite: Whether a kit that is there may be replaced.

    Raises:
        OutputError: If it cannot be written, or must not be replaced.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder, lambda: check_replaceable(folder, overwrite)) as new:
            _copy_model(coarse, checkpoint, new / COARSE)
            values = {**settings, "coarse": {**settings.get("coarse", {}), "model": COARSE}}
            with (new / SETTINGS).open("w", encoding="utf-8") as stream:
                stream.write("# Made by c2f-prepare. A changed file is refused: use --set for other settings.\n")
                YAML(typ="safe").dump(values, stream)
            _write_json(new / CALIBRATION, calibration)
            (new / PAGE).write_text(page, encoding="utf-8")
            names = sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file())
            files = {name: _checksum(new / name) for name in names}
            _write_json(new / CARD, {"version": VERSION, **about, "software": versions(), "files": files})
    except OSError as error:
        raise OutputError(
            f"cannot write the kit {folder}: {error.strerror or error}",
            "Check that you may write there and that there is space on the disk.",
        ) from error


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Make sure that a folder is free for a kit, or holds one that may be replaced.

    Raises:
        OutputError: If not.
    """
    if not folder.is_symlink() and not folder.exists():
        return
    if folder.is_symlink() or not is_kit(folder):
        raise OutputError(f"{folder} exists and is no kit", "Choose another folder with -o.")
    if not overwrite:
        raise OutputError(f"{folder} holds a kit", "Choose another folder with -o, or add --overwrite.")


def _copy_model(model: Model, checkpoint: str, target: Path) -> None:
    names = ["plans.json", "dataset.json", *(f"fold_{fold}/{checkpoint}" for fold in model.folds)]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.folder / name, target / name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_of(paths: Sequence[Path]) -> list[list[Any]]:
    """What tells files from others of their names, without reading them: size and time."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
