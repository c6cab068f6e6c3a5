"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from coarse2fine.errors import OutputError
from coarse2fine.io.owned import check_links
from coarse2fine.system.signals import undisturbed

_TEMP_PREFIX = ".c2f-"  # hidden, so that what a killed process leaves behind is not taken for a case
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_write(path: Path, needed: int = 0) -> Iterator[Path]:
    """Lets the body write a temporary file, which then replaces ``path`` in one step.

    The temporary file lies in the folder of ``path`` and ends like it. If the body raises anything, KeyboardInterrupt
    included, it is removed and ``path`` stays as it was. A link stays a link; the file that it points to is replaced,
    unless somebody laid the link whom we need not trust.

    Args:
        path: The file to write; its folder exists.
        needed: Bytes that will be written, for the message when there is no space for them; 0 if unknown.

    Yields:
        The path to write to; nothing exists there yet.

    Raises:
        OutputError: If the system refuses a write, the disk is full, or a link is not to be trusted.
    """
    temp = path
    try:
        check_links(path)
        target = path.resolve()
        temp = target.with_name(f"{_TEMP_PREFIX}{secrets.token_hex(8)}{''.join(target.suffixes[-2:])}")
        yield temp
        _flush(temp)
        temp.replace(target)
    except OSError as error:
        raise _output_error(path, error, needed) from error
    finally:
        if temp != path:
            with suppress(OSError):  # where nothing can be removed, the error above has said why
                temp.unlink(missing_ok=True)


def check_writable(path: Path, overwrite: bool, suffixes: Sequence[str] = ()) -> None:
    """Finds out before a long run whether its result can be written; creates the folder if there is none.

    Args:
        path: The file that will be written.
        overwrite: Whether a file that exists may be replaced.
        suffixes: Endings that the file may have; empty if any will do.

    Raises:
        OutputError: If ``path`` exists and ``overwrite`` is off, is a folder, ends in something else, is a link that
            is not to be trusted, or its folder cannot be created or takes no new files.
    """
    if suffixes and not path.name.endswith(tuple(suffixes)):
        raise OutputError(f"cannot write {path}: unknown file type", f"Use one of {', '.join(suffixes)}.")
    try:
        check_links(path)
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder", "Name a file.")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists already", "Use --overwrite to replace it, or choose another name.")
        _try_folder(path.resolve().parent)
    except OSError as error:
        raise _output_error(path, error, 0) from error


def check_folder(path: Path) -> None:
    """Finds out whether the folder of ``path`` takes new files, whatever ``path`` is; creates it if there is none.

    Raises:
        OutputError: If not, or if it lies behind a link that is not to be trusted.
    """
    try:
        check_links(path.parent)
        _try_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error, 0) from error


def _try_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Permission bits say little about read-only mounts, quotas and access lists: only trying tells.
    with tempfile.NamedTemporaryFile(dir=folder, prefix=_TEMP_PREFIX):
        pass


def _flush(path: Path) -> None:
    """Waits until the file's bytes are on the disk: a rename may otherwise outlive them in a power cut."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _output_error(path: Path, error: OSError, needed: int) -> OutputError:
    """The same problem in the user's terms."""
    problem = f"cannot write {path}: {error.strerror or error}"
    if error.errno not in _FULL:
        return OutputError(problem, "Check that the folder exists and that you may write there.")
    size = f"{needed / 1e6:.1f} MB are needed" if needed else "more space is needed"
    with suppress(OSError):  # the folder itself may be gone; the first problem is the one to report
        size += f", {shutil.disk_usage(path.resolve().parent).free / 1e6:.1f} MB are free on this disk"
    return OutputError(problem, f"{size[0].upper()}{size[1:]}. Free some, raise the quota, or write elsewhere.")


@contextmanager
def atomic_folder(target: Path, check: Callable[[], None]) -> Iterator[Path]:
    """A hidden folder that becomes ``target`` if the body ends well, and goes away otherwise.

    Args:
        target: The folder to write; what is there under this name is replaced as a whole.
        check: Called before something is replaced; raises if that must not be.

    Raises:
        OSError: If the system refuses to write.
    """
    # Nobody else may enter it while files get their names, which are known: a link could lie there before.
    temp = target.with_name(f".c2f-{secrets.token_hex(8)}")
    temp.mkdir(mode=0o700)
    new = temp / target.name
    new.mkdir()
    try:
        yield new
        if target.exists():
            check()
            with undisturbed():  # between its two steps the old folder would be lost
                _exchange(new, target, temp / "old")
        else:
            new.rename(target)
    finally:
        with undisturbed():
            shutil.rmtree(temp, ignore_errors=True)


def _exchange(new: Path, target: Path, old: Path) -> None:
    """Puts ``new`` in the place of ``target``, which becomes ``old``."""
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
