"""Folders that others may write to: nothing is written through their links, nor into their folders."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from coarse2fine.errors import OutputError
from coarse2fine.io import atomic_write, check_folder, check_writable, make_own, owned

STRANGER = 65_534


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that anybody may write to."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Gives a link or folder to somebody else; who may not do that is somebody else from then on."""

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            os.lchown(path, STRANGER, STRANGER)
            return
        monkeypatch.setattr(owned, "_keeps_owners", lambda _: True)  # whose probe is ours still
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)

    return give


@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing yet"])
@pytest.mark.parametrize("at", ["name", "folder"])
def test_atomic_write__link_of_somebody_else__writes_nothing(
    shared: Path, tmp_path: Path, give: Callable[[Path], None], at: str, there: bool
) -> None:
    """Neither through the last name nor through a folder; the message names what the link points to."""
    victim = tmp_path / "home" / "report.json"
    victim.parent.mkdir()
    if there:
        victim.write_text("mine")
    link = shared / ("report.json" if at == "name" else "out")
    link.symlink_to(victim if at == "name" else victim.parent)
    path = link if at == "name" else link / victim.name
    give(link)
    with pytest.raises(OutputError, match="symbolic link that somebody else has laid") as caught, atomic_write(path):
        pass
    assert str(link.readlink()) in caught.value.remedy
    with pytest.raises(OutputError, match="symbolic link"):
        check_writable(path, overwrite=True)
    if at == "folder":
        with pytest.raises(OutputError, match="symbolic link"):
            check_folder(path)
    assert [file.read_text() for file in victim.parent.iterdir()] == (["mine"] if there else [])
    with atomic_write(victim if at == "name" else link.readlink() / victim.name) as temp:  # the remedy
        temp.write_text("new")
    assert victim.read_text() == "new"


def test_check_links__chain_that_ends_with_a_stranger__is_refused(
    shared: Path, tmp_path: Path, give: Callable[[Path], None]
) -> None:
    """Ours leads to theirs."""
    (shared / "theirs").symlink_to(tmp_path / "victim")
    (tmp_path / "ours").symlink_to(shared / "theirs")
    owned.check_links(tmp_path / "ours")
    give(shared / "theirs")
    with pytest.raises(OutputError, match="somebody else"):
        owned.check_links(tmp_path / "ours")


def test_check_links__loop__is_refused(tmp_path: Path) -> None:
    """Rather than followed for ever."""
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(OutputError, match="too many"):
        owned.check_links(tmp_path / "a")


@pytest.mark.parametrize(
    ("me", "link", "folder", "mode", "trusted"),
    [
        (7, 7, 8, 0o777, True),  # our own
        (7, 0, 8, 0o777, True),  # root's
        (7, 8, 8, 0o755, True),  # in a folder of theirs, where nobody else can have laid it
        (7, 8, 8, 0o775, False),
        (7, 8, 8, 0o757, False),
        (7, 8, 7, 0o755, False),  # in ours: from a time when they could
        (0, 8, 8, 0o755, False),  # root follows nobody
        (0, 0, 8, 0o777, True),
    ],
)
def test_trusted__whose_link_in_whose_folder__decides(
    me: int, link: int, folder: int, mode: int, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel's own guard, for folders that a group may write to as well."""
    monkeypatch.setattr(os, "geteuid", lambda: me)
    one, other = (os.stat_result((bits, 1, 1, 1, owner, 1, 1, 1, 1, 1)) for bits, owner in ((0, link), (mode, folder)))
    assert owned._trusted(one, other) is trusted


def test_make_own__new__is_for_nobody_else(tmp_path: Path) -> None:
    """Whatever the umask; again is no error."""
    before = os.umask(0)
    try:
        make_own(tmp_path / "a" / "work")
        make_own(tmp_path / "a" / "work")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "work").stat().st_mode & 0o777 == 0o700


def test_make_own__others_may_write__is_refused_until_they_may_not(tmp_path: Path) -> None:
    """The remedy is executed as it is told; a folder that need not be private is taken as it is."""
    folder = tmp_path / "work"
    for mode in (0o770, 0o702, 0o777):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
        with pytest.raises(OutputError, match=r"others may write to .*work \(mode 7") as caught:
            make_own(folder)
        make_own(folder, private=False)
        assert list(folder.iterdir()) == []
        command = caught.value.remedy.partition(": ")[2].partition(". Else")[0]
        subprocess.run(command.split(), check=True)
        make_own(folder)


@pytest.mark.parametrize("private", [True, False])
def test_make_own__somebody_elses__is_refused(shared: Path, give: Callable[[Path], None], private: bool) -> None:
    """Even if they let us write there."""
    (shared / "work").mkdir()
    (shared / "work").chmod(0o777)
    give(shared / "work")
    with pytest.raises(OutputError, match="belongs to somebody else"):
        make_own(shared / "work", private=private)


def test_make_own__link__is_refused(tmp_path: Path) -> None:
    """Also our own, and also if it leads nowhere."""
    (tmp_path / "there").mkdir()
    for target in ("there", "nowhere"):
        link = tmp_path / f"to-{target}"
        link.symlink_to(target)
        with pytest.raises(OutputError, match="is a symbolic link"):
            make_own(link)
    make_own(tmp_path / "there")


def test_make_own__file_system_without_owners__is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every file seems to be somebody else's, that says nothing."""
    real = os.fstat

    def fstat(handle: int) -> os.stat_result:
        found = real(handle)
        return os.stat_result((found.st_mode | 0o777, *found[1:4], found.st_uid + 5, *found[5:]))

    monkeypatch.setattr(os, "fstat", fstat)
    make_own(tmp_path / "work")
    make_own(tmp_path / "work")
