"""The work folder: what of a long run is done, so that the same command goes on where the last one was stopped.

A folder belongs to one run with one set of settings. It holds::

    .c2f-lock              locked while a run is going on; names its process
    manifest.json          what the run is: settings, input, models, version, layout
    done/PHASE/HH/1_2_3.json   one marker per finished block; HH spreads them over 256 folders
    data/                  whatever else the phases keep

Nothing outside of these names is ever removed. Nobody else may enter the folder: what is in it decides what the run
writes, and where. POSIX systems only (``flock``).
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from coarse2fine.errors import OutputError
from coarse2fine.io.atomic import atomic_write
from coarse2fine.io.owned import has_owners, make_own, open_own
from coarse2fine.large.execution.manifest import Manifest, manifest_differences, plain

__all__ = ["Key", "Manifest", "WorkFolder", "manifest_differences", "open_work", "remove_work"]


Key = tuple[int, ...]


_FORMAT = "coarse2fine work folder 1"


_MANIFEST, _DONE, _DATA = "manifest.json", "done", "data"


_HIDDEN = ".c2f-"  # what we create beside these: the lock, temporary files, folders on their way out


_LOCK = f"{_HIDDEN}lock"


_STEP = f"{_HIDDEN}step"  # locked for what one process does while others share the folder


_PHASE = re.compile(r"[a-z][a-z0-9_-]*")


_SHOWN = 10  # differences of manifests that a message lists


_ANOTHER = "Choose another work folder (--work)"


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """An open work folder. It can be pickled: workers mark blocks, while the lock stays with who opened it.

    Attributes:
        folder: Where it is, as an absolute path that all workers share.
        run: Token of this run; what workers left over from a run before ``restart`` mark does not count.
    """

    folder: Path
    run: str

    def path(self, name: str) -> Path:
        """Where a phase keeps a further file or folder; it is removed by ``restart``.

        Args:
            name: Relative path; folders in it are not created.

        Raises:
            ValueError: If ``name`` leads out of the work folder.
        """
        parts = Path(name).parts
        if not parts or ".." in parts or Path(name).is_absolute():
            raise ValueError(f"no file of a work folder: {name!r}")
        return self.folder / _DATA / name

    def check(self) -> None:
        """Makes sure that this process sees the folder, and that it still belongs to this run.

        Raises:
            OutputError: If it does not.
        """
        try:
            found = _read_manifest(self.folder)
        except PermissionError as error:
            raise OutputError(
                f"a worker on {socket.gethostname()} may not read the work folder {self.folder}",
                "Start workers as the user who starts the run: nobody else may enter its work folder.",
            ) from error
        if found is None:
            raise OutputError(
                f"{socket.gethostname()} does not see the work folder {self.folder}",
                "All workers must see it under this path: put it onto storage that they share.",
            )
        if found["run"] != self.run:
            raise OutputError(
                f"the work folder {self.folder} has been restarted by another run",
                f"{_ANOTHER} for this run, or let the other one end.",
            )

    def mark(self, phase: str, key: Key, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Notes that a block is done. The marker outlives a power cut once this has returned.

        Args:
            phase: Name of the phase: small letters, digits, ``-`` and ``_``.
            key: The block.
            payload: What there is to know about it; it can be written as JSON and is small.

        Returns:
            The payload as ``finished`` will read it: with lists for tuples and strings for keys.

        Raises:
            OutputError: If it cannot be written.
        """
        path = self._marker(phase, key)
        text = json.dumps({"run": self.run, "key": [int(index) for index in key], "payload": payload})
        with _system_errors(self.folder):
            _make_folders(path.parent, self.folder)
            with atomic_write(path) as temp:
                temp.write_text(text)
            _sync_folder(path.parent)  # the file's bytes are on the disk already, its name may not be
        kept: dict[str, Any] = json.loads(text)["payload"]
        return kept

    def finished(self, phase: str) -> dict[Key, dict[str, Any]]:
        """The payloads of all blocks that are done, in order of their keys.

        What is not a marker of this run (half-written, damaged, misplaced, of an earlier run) counts as not done.

        Raises:
            OutputError: If the markers cannot be listed or read.
        """
        found: dict[Key, dict[str, Any]] = {}
        with _system_errors(self.folder):
            for path in self._phase(phase).glob("[0-9a-f][0-9a-f]/*.json"):
                marker = _read_json(path)
                with suppress(KeyError, TypeError, ValueError):
                    key = tuple(int(index) for index in marker["key"])
                    if marker["run"] == self.run and path == self._marker(phase, key):
                        found[key] = dict(marker["payload"])
        return dict(sorted(found.items()))

    def _phase(self, phase: str) -> Path:
        if not _PHASE.fullmatch(phase):
            raise ValueError(f"not a name of a phase: {phase!r}")
        return self.folder / _DONE / phase

    def _marker(self, phase: str, key: Key) -> Path:
        if not key:
            raise ValueError("a block's key has at least one number")
        name = "_".join(str(int(index)) for index in key)
        return self._phase(phase) / f"{zlib.crc32(name.encode()) % 256:02x}" / f"{name}.json"


@contextmanager
def open_work(folder: Path, manifest: Manifest, *, restart: bool = False, shared: bool = False) -> Iterator[WorkFolder]:
    """Opens the work folder of a run, a new one or that of an equal run before; locks it until the end.

    Args:
        folder: The folder; it is created where there is none, else it is empty or a work folder.
        manifest: What the run is.
        restart: Whether to remove all that earlier runs left in a work folder. Other files in it stay.
        shared: Whether other processes may have the folder open at the same time, if they share it, too.

    Yields:
        The work folder.

    Raises:
        OutputError: If the folder belongs to a run with another manifest or to somebody else, may be written to by
            others, is a link, holds other files, is in use by another process, cannot be locked or cannot be written,
            or the system is none that can lock folders.
    """
    if not has_owners():
        raise OutputError(
            "volumes that are read by region are segmented on Linux and macOS only",
            "On Windows, use the Subsystem for Linux, or convert the volume to NIfTI, NRRD or MetaImage.",
        )
    folder = folder.absolute()  # workers have other current folders; links stay, for hosts may resolve them differently
    with ExitStack() as stack:
        with _system_errors(folder):
            _check_ours(folder)
            handle = open_own(folder)
            stack.callback(os.close, handle)
            stack.enter_context(_locked(folder, handle, shared))
            with one_at_a_time(folder) if shared else nullcontext():
                run = _prepare(folder, manifest, restart, alone=not shared)
        yield WorkFolder(folder, run)


def remove_work(folder: Path) -> None:
    """Removes a work folder whose run has ended well, in one step, unless there are other people's files in it.

    Raises:
        OutputError: If it cannot be removed.
    """
    with _system_errors(folder):
        ours = {_LOCK, _MANIFEST, _DONE, _DATA}
        if all(path.name in ours or path.name.startswith(_HIDDEN) for path in folder.iterdir()):
            _remove(folder, folder.parent)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Within this, no other process that shares the work folder is within this."""
    import fcntl  # none on Windows

    with _system_errors(folder):
        handle = os.open(folder / _STEP, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _prepare(folder: Path, manifest: Manifest, restart: bool, *, alone: bool) -> str:
    """Resumes, restarts or begins a run in a folder that is ours and locked; returns the run's token."""
    found = _read_manifest(folder)
    if found and not restart:
        lines = manifest_differences(Manifest(**found["manifest"]), manifest)
        if lines:
            raise _other_run(folder, lines)
    else:
        _remove(folder / _DONE, folder)  # first: without markers nothing of the rest counts, wherever this is cut short
        _remove(folder / _DATA, folder)
        found = {"format": _FORMAT, "run": secrets.token_hex(8), "manifest": plain(manifest)}
        with atomic_write(folder / _MANIFEST) as temp:
            temp.write_text(json.dumps(found, indent=1))
        _sync_folder(folder)
        _sync_folder(folder.parent)
    for left in folder.glob(f"{_HIDDEN}*"):  # by a run that was killed
        if alone and left.name not in (_LOCK, _STEP):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    for name in (_DONE, _DATA):
        make_own(folder / name)
    _sync_folder(folder)
    return str(found["run"])


def _other_run(folder: Path, lines: list[str]) -> OutputError:
    """The refusal to go on with other settings."""
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    listed = "".join(f"\n    {line}" for line in [*lines[:_SHOWN], *more])
    return OutputError(
        f"the work folder {folder} belongs to a run with other settings:{listed}",
        f"Run with the same settings to resume it. {_ANOTHER}, or use --restart to give up what is done.",
    )


def _check_ours(folder: Path) -> None:
    """Refuses a folder that anybody else has put files into, before a lock is added to them."""
    if not folder.exists() or _read_manifest(folder):
        return
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith(_HIDDEN))
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise OutputError(
            f"{folder} is not a work folder and not empty: {shown}",
            f"{_ANOTHER}: one that does not exist yet, is empty, or is that of an earlier run.",
        )


@contextmanager
def _locked(folder: Path, opened: int, shared: bool) -> Iterator[None]:
    """Holds the folder's lock; the kernel releases it when the process dies. The file stays, for others may wait."""
    import fcntl  # there is none on Windows, where files that are no stores are segmented all the same

    handle = _open_lock(folder, opened)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"the work folder {folder} is in use by {_holder(handle)}",
                f"Wait until that run ends, or stop it. {_ANOTHER} to run both.",
            ) from None
        except OSError as error:
            raise OutputError(
                f"cannot lock the work folder {folder}: {error.strerror or error}",
                f"Its file system has no locks (flock). {_ANOTHER} on one that has.",
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(handle)


def _open_lock(folder: Path, opened: int) -> int:
    """The lock file, whose text will be replaced: no link, and no second name of another file."""
    try:
        handle = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=opened)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        found = None
    else:
        found = os.fstat(handle)
    if found is None or not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        if found:
            os.close(handle)
        raise OutputError(f"{folder / _LOCK} is no lock but something else, such as a link", "Remove it.")
    return handle


def _holder(handle: int) -> str:
    """Who wrote the lock file."""
    with suppress(ValueError, KeyError, TypeError):  # the holder has the lock but has not written this yet
        holder = json.loads(os.pread(handle, 1000, 0))
        return f"process {holder['pid']} on {holder['host']}"
    return "another process"


def _read_manifest(folder: Path) -> Any:
    """What manifest.json holds; None where there is none of ours."""
    found = _read_json(folder / _MANIFEST)
    names = {field.name for field in fields(Manifest)}
    with suppress(KeyError, TypeError):
        if found["format"] == _FORMAT and isinstance(found["run"], str) and found["manifest"].keys() == names:
            return found
    return None


def _read_json(path: Path) -> Any:
    """A file's content; None where there is no such file or it is not JSON."""
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        return json.loads(path.read_bytes())
    return None


def _make_folders(path: Path, base: Path) -> None:
    """Creates folders below ``base``, never ``base`` itself, and waits until their names are on the disk."""
    if path.is_dir() or path == base:
        return
    _make_folders(path.parent, base)
    path.mkdir(exist_ok=True)
    _sync_folder(path.parent)


def _remove(path: Path, base: Path) -> None:
    """Removes a folder, which is gone from the first moment on: it is renamed before its files are removed."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        trash = base / f"{_HIDDEN}{secrets.token_hex(8)}"
        path.rename(trash)
        _sync_folder(base)
        shutil.rmtree(trash)


def _sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk, where the file system offers that."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextmanager
def _system_errors(folder: Path) -> Iterator[None]:
    """Says what the system refuses in the user's terms."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        raise OutputError(
            f"cannot use the work folder {folder}: {place}: {error.strerror or error}",
            f"Check that it exists, is on a disk with free space, and that you may write there. {_ANOTHER} if not.",
        ) from error
