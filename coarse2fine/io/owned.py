"""Folders that others may write to, too: whose links are followed, and whose folders are worked in.

Somebody who may write to a folder can lay a link, under a name that we are going to write, to a file that only we may
write. The kernel's own guard (``fs.protected_symlinks``) covers sticky folders on Linux, and not what is resolved here.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from coarse2fine.errors import OutputError

__all__ = ["check_links", "make_own", "open_own"]

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_ROOT = 0
_MOST_LINKS = 40  # as in Linux


def check_links(path: Path) -> None:
    """Makes sure that no link on the way to ``path``, itself included, was laid by somebody whom we need not trust.

    Our own links and root's are trusted. So are a user's in a folder that only they may write to, unless we are root:
    who names a path in it trusts them anyway.

    Raises:
        OutputError: Naming the link.
        OSError: If the system refuses to look.
    """
    if has_owners():
        _check_links(path.absolute(), _MOST_LINKS)


def has_owners() -> bool:
    """Whether files have an owner and a mode here; on Windows nobody else can lay a link without being asked."""
    return hasattr(os, "geteuid")


def make_own(folder: Path, *, private: bool = True) -> None:
    """Creates a folder of ours, or makes sure that the one that is there is.

    Args:
        folder: The folder.
        private: Whether nobody else may write to it; a new one can then not even be entered by others.

    Raises:
        OutputError: If there is a link in its place, it belongs to somebody else, or others may write to it.
        OSError: If the system refuses to create or open it.
    """
    if has_owners():
        os.close(open_own(folder, private=private))
    else:
        folder.mkdir(parents=True, exist_ok=True)


def open_own(folder: Path, *, private: bool = True) -> int:
    """Opens such a folder (see ``make_own``); returns its descriptor."""
    check_links(folder.parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700 if private else 0o777)
    if folder.is_symlink():
        raise OutputError(f"{folder} is a symbolic link", "Name the folder that it points to, or another one.")
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check_folder(folder, handle, private)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_links(path: Path, most: int) -> None:
    for place in (*reversed(path.parents), path):
        if not place.is_symlink():
            continue
        if not most:
            raise OutputError(f"{path}: too many symbolic links", "Name the file that they lead to.")
        if not _trusted(place.lstat(), place.parent.stat()):
            raise OutputError(
                f"{place} is a symbolic link that somebody else has laid in a folder that others may write to",
                f"If it is right, name what it points to: {place.readlink()}. Else choose another path.",
            )
        _check_links(place.parent / place.readlink(), most - 1)


def _trusted(link: os.stat_result, folder: os.stat_result) -> bool:
    """Whether a link may be followed."""
    me = os.geteuid()
    if link.st_uid in (me, _ROOT):
        return True
    return me != _ROOT and link.st_uid == folder.st_uid and not folder.st_mode & _OTHERS


def _check_folder(folder: Path, handle: int, private: bool) -> None:
    """Raises an OutputError unless an open folder is ours, and where it is private nobody else may write to it."""
    found = os.fstat(handle)
    if found.st_uid != os.geteuid() and _keeps_owners(handle):
        raise OutputError(
            f"{folder} belongs to somebody else (user {found.st_uid})", "Choose a folder that does not exist yet."
        )
    if private and found.st_mode & _OTHERS and _keeps_owners(handle):
        raise OutputError(
            f"others may write to {folder} (mode {stat.S_IMODE(found.st_mode):o})",
            f"If you trust what is in it: chmod go-w {folder}. Else choose a folder that does not exist yet.",
        )


def _keeps_owners(handle: int) -> bool:
    """Whether a folder's file system keeps owners and modes; some network shares and FAT show the same for all files.

    Nobody else can have a hand in this: what is looked at is the file that has just been created.
    """
    name = f".c2f-{secrets.token_hex(8)}"
    try:
        probe = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=handle)
    except PermissionError:  # somebody else's without doubt
        return True
    try:
        found = os.fstat(probe)
        return found.st_uid == os.geteuid() and not found.st_mode & _OTHERS
    finally:
        os.close(probe)
        os.unlink(name, dir_fd=handle)
