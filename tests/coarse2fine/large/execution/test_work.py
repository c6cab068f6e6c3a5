"""The work folder: what survives kills and power cuts, and whose files are never touched."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coarse2fine.errors import OutputError
from coarse2fine.large.execution import work as module
from coarse2fine.large.execution.manifest import Manifest, manifest_differences
from coarse2fine.large.execution.work import WorkFolder, open_work, remove_work

MANIFEST = Manifest(
    config={"rois": {"threshold": 0.1}, "name": None},
    volume={"where": "brain.zarr", "shape": (64, 512, 512)},
    models={"coarse": "1a2b"},
    version="0.2",
    layout={"blocks": (2, 4, 4)},
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def markers(work: WorkFolder, phase: str) -> list[Path]:
    return sorted((work.folder / "done" / phase).rglob("*.json"))


# --- manifests -------------------------------------------------------------------------------------------------------


def test_manifest_differences__values_changed_added_and_removed__names_each_with_both_values() -> None:
    """Nested keys are dotted, list items numbered; long values keep both ends; tuples are lists, as in files."""
    new = Manifest(
        config={"rois": {"threshold": 0.3, "cap": True}},
        volume={"where": "x" * 100 + "end", "shape": [64, 512, 256]},
        models={"coarse": "1a2b"},
        version="0.3",
        layout={"blocks": [2, 4, 4]},
    )
    lines = manifest_differences(MANIFEST, new)
    assert lines[:3] == [
        "config.rois.threshold: 0.1 before, 0.3 now",
        "config.rois.cap: absent before, true now",
        "config.name: null before, absent now",
    ]
    assert re.fullmatch(r'volume\.where: "brain\.zarr" before, "x+\.\.\.x+end" now', lines[3])
    assert len(lines[3]) < 110
    assert lines[4:] == ["volume.shape[2]: 512 before, 256 now", 'version: "0.2" before, "0.3" now']
    assert manifest_differences(MANIFEST, replace(MANIFEST, layout={"blocks": [2, 4, 4]})) == []
    one, true, one_point_nought = (replace(MANIFEST, models={"a": value}) for value in (1, True, 1.0))
    assert manifest_differences(one, true) == ["models.a: 1 before, true now"]
    assert manifest_differences(one, one_point_nought) == []


# --- opening ---------------------------------------------------------------------------------------------------------


def test_open_work__same_manifest_again__goes_on(tmp_path: Path) -> None:
    """What was marked and kept is there, and the folder's path is absolute."""
    with open_work(tmp_path / "a" / "work", MANIFEST) as work:
        work.mark("scan", (0, 1, 2), {"mean": 0.1, "range": (1, 2)})
        work.path("state.json").write_text("kept")
    with open_work(tmp_path / "a" / "work", MANIFEST) as again:
        assert again == work
        assert again.finished("scan") == {(0, 1, 2): {"mean": 0.1, "range": [1, 2]}}
        assert again.path("state.json").read_text() == "kept"
    assert work.folder.is_absolute()


def test_open_work__relative_path__is_the_same_folder_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have other current folders."""
    monkeypatch.chdir(tmp_path)
    with open_work(Path("work"), MANIFEST) as work:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        work.mark("scan", (0,), {})
    assert len(list((tmp_path / "work" / "done").rglob("*.json"))) == 1


def test_open_work__other_manifest__is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """The message lists what differs and what can be done; a long list is cut."""
    with open_work(tmp_path, MANIFEST) as work:
        work.mark("scan", (0,), {})
    before = contents(tmp_path)
    config = {"rois": {"threshold": 0.3}, "name": None, **{f"key{index}": 1 for index in range(20)}}
    with pytest.raises(OutputError) as caught, open_work(tmp_path, replace(MANIFEST, config=config)):
        pass
    assert "\n    config.rois.threshold: 0.1 before, 0.3 now\n" in caught.value.problem
    assert caught.value.problem.endswith("config.key8: absent before, 1 now\n    and 11 more")
    assert contents(tmp_path) == before
    assert caught.value.remedy == (
        "Run with the same settings to resume it. Choose another work folder (--work), or use --restart to give up "
        "what is done."
    )
    other = replace(MANIFEST, config=config)
    with open_work(tmp_path, MANIFEST) as work:
        assert work.finished("scan") == {(0,): {}}
    with open_work(tmp_path.with_name("another"), other), open_work(tmp_path, other, restart=True):
        pass


def test_open_work__restart__removes_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    """Markers and files of phases are gone, somebody's notes and what a link points to stay."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "precious").touch()
    folder = tmp_path / "work"
    with open_work(folder, MANIFEST) as old:
        old.mark("scan", (0,), {})
        old.path("labels").mkdir()
        (old.path("labels") / "0").touch()
        old.path("link").symlink_to(tmp_path / "target")
    (folder / "notes.txt").write_text("mine")
    with open_work(folder, replace(MANIFEST, version="0.3"), restart=True) as new:
        assert new.finished("scan") == {}
        assert sorted(contents(folder)) == [".c2f-lock", "manifest.json", "notes.txt"]
        assert list(new.path("x").parent.iterdir()) == []
        with pytest.raises(OutputError, match="restarted by another run") as caught:
            old.check()
        assert caught.value.remedy.startswith("Choose another work folder (--work) for this run")
        with open_work(tmp_path / "another", MANIFEST) as another:
            another.check()
        old.mark("scan", (1,), {})  # by a worker that outlived its run
        assert new.finished("scan") == {}
        new.check()
    assert (tmp_path / "target" / "precious").exists()


def test_open_work__restart_cut_short__leaves_no_marker_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of phases may be gone already, so that no block counts as done; the next run sweeps up."""
    with open_work(tmp_path, MANIFEST) as work:
        work.mark("scan", (0,), {})

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt), open_work(tmp_path, MANIFEST, restart=True):
            pass
    with open_work(tmp_path, MANIFEST) as work:
        assert work.finished("scan") == {}
    assert {path.name for path in tmp_path.iterdir()} == {".c2f-lock", "manifest.json", "done", "data"}


@pytest.mark.parametrize("name", ["paper.tex", "manifest.json", "data", "done"])
@pytest.mark.parametrize("restart", [False, True])
def test_open_work__other_peoples_files__is_refused_and_changes_nothing(
    tmp_path: Path, name: str, restart: bool
) -> None:
    """Also if they are named like ours, and also if asked to restart."""
    if name in ("data", "done"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine")
    else:
        (tmp_path / name).write_text('{"run": "x", "name": "web app"}')
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=f"not a work folder and not empty: {name}") as caught:
        open_work(tmp_path, MANIFEST, restart=restart).__enter__()
    assert contents(tmp_path) == before
    assert "one that does not exist yet, is empty, or is that of an earlier run" in caught.value.remedy
    empty = tmp_path.with_name(f"{tmp_path.name}-empty")
    empty.mkdir(mode=0o700)
    for folder in (empty, tmp_path.with_name(f"{tmp_path.name}-new"), empty):
        with open_work(folder, MANIFEST, restart=restart):
            pass


def test_open_work__a_file__is_refused(tmp_path: Path) -> None:
    """The system's complaint comes in our terms."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "work"):
        with pytest.raises(OutputError, match="cannot use the work folder") as caught:
            open_work(path, MANIFEST).__enter__()
        assert caught.value.remedy.endswith("Choose another work folder (--work) if not.")
    with open_work(tmp_path / "another", MANIFEST):
        pass


def test_open_work__file_system_without_locks__another_folder_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have none; what the message says is done."""
    original = fcntl.flock

    def flock(handle: int, operation: int) -> None:
        if "remote" in Path(f"/proc/self/fd/{handle}").readlink().parts:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        original(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OutputError, match=r"cannot lock the work folder .*: No locks available") as caught:
        open_work(tmp_path / "remote", MANIFEST).__enter__()
    assert "Choose another work folder (--work) on one that has" in caught.value.remedy
    with open_work(tmp_path / "local", MANIFEST):
        pass


def test_open_work__killed_before_the_manifest__starts_afresh(tmp_path: Path) -> None:
    """A lock and half a manifest are all that such a run leaves."""
    (tmp_path / ".c2f-lock").touch()
    (tmp_path / ".c2f-0123456789abcdef.json").write_text('{"form')
    with open_work(tmp_path, MANIFEST) as work:
        assert work.finished("scan") == {}
    assert not (tmp_path / ".c2f-0123456789abcdef.json").exists()


@pytest.mark.parametrize("kind", ["link", "hard link", "folder"])
def test_open_work__something_else_in_the_place_of_the_lock__is_refused_and_not_written(
    tmp_path: Path, kind: str
) -> None:
    """A lock holds text, which would replace that of the file behind a link; the remedy is executed."""
    victim, folder = tmp_path / "victim", tmp_path / "work"
    folder.mkdir(mode=0o700)
    victim.write_text("mine")
    lock = folder / ".c2f-lock"
    {"link": lock.symlink_to, "hard link": lock.hardlink_to, "folder": lambda _: lock.mkdir()}[kind](victim)
    with pytest.raises(OutputError, match=r"\.c2f-lock is no lock") as caught:
        open_work(folder, MANIFEST).__enter__()
    assert victim.read_text() == "mine"
    assert caught.value.remedy == "Remove it."
    shutil.rmtree(lock) if kind == "folder" else lock.unlink()
    with open_work(folder, MANIFEST):
        pass


@pytest.mark.parametrize("name", ["", "done", "data"])
def test_open_work__folder_that_others_may_write_to__is_refused(tmp_path: Path, name: str) -> None:
    """What is in it decides what a run writes, and where."""
    folder = tmp_path / "work"
    with open_work(folder, MANIFEST):
        pass
    assert {path.stat().st_mode & 0o077 for path in (folder, folder / "done", folder / "data")} == {0}
    (folder / name).chmod(0o777)
    with pytest.raises(OutputError, match="others may write to"):
        open_work(folder, MANIFEST).__enter__()


@pytest.mark.parametrize("restart", [False, True])
def test_open_work__links_of_ours_inside__are_never_followed(tmp_path: Path, restart: bool) -> None:
    """Neither when what is left over is removed, nor when a run begins anew."""
    folder, precious = tmp_path / "work", tmp_path / "precious"
    with open_work(folder, MANIFEST):
        pass
    precious.mkdir()
    (precious / "file").write_text("mine")
    (folder / ".c2f-0123").symlink_to(precious)
    shutil.rmtree(folder / "data")
    (folder / "data").symlink_to(precious)
    if restart:
        with open_work(folder, MANIFEST, restart=True):
            assert not (folder / "data").is_symlink()
    else:
        with pytest.raises(OutputError, match="data is a symbolic link"):
            open_work(folder, MANIFEST).__enter__()
    assert contents(precious) == {"file": b"mine"}


HOLDER = """
import sys, time
from pathlib import Path
from coarse2fine.large.execution.manifest import Manifest
from coarse2fine.large.execution.work import open_work
with open_work(Path(sys.argv[1]), Manifest({}, {}, {}, "", {})):
    print("open", flush=True)
    time.sleep(60)
"""


def test_open_work__in_use__names_the_holder_until_that_dies(tmp_path: Path) -> None:
    """Neither a restart gets past the lock; kill -9 releases it."""
    manifest = Manifest({}, {}, {}, "", {})
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        for restart in (False, True):
            with pytest.raises(OutputError, match=f"in use by process {holder.pid} on {socket.gethostname()}") as told:
                open_work(tmp_path, manifest, restart=restart).__enter__()
        assert told.value.remedy == (
            "Wait until that run ends, or stop it. Choose another work folder (--work) to run both."
        )
        with open_work(tmp_path / "another", manifest):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with (
        open_work(tmp_path, manifest),
        pytest.raises(OutputError, match=f"process {os.getpid()} "),
        open_work(tmp_path, manifest),
    ):
        pass


# --- markers ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_mark__many_blocks__all_are_found_and_no_folder_is_large(tmp_path: Path) -> None:
    """Keys of all kinds come back as they were, in order."""
    keys = {(z, y, x) for z in range(4) for y in range(8) for x in range(16)} | {(0,), (1, 23), (12, 3), (-1, 5)}
    with open_work(tmp_path, MANIFEST) as work:
        for key in keys:
            assert work.mark("segment", key, {"sum": sum(key)}) == {"sum": sum(key)}
        found = pickle.loads(pickle.dumps(work)).finished("segment")  # by a worker
        assert found == {key: {"sum": sum(key)} for key in keys}
        assert list(found) == sorted(keys)
        assert max(len(list(path.parent.iterdir())) for path in markers(work, "segment")) < 20
        assert work.finished("seg") == {}


def test_mark__before_it_returns__bytes_and_names_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's bytes come before its name, its name and those of new folders before the return."""
    events: list[tuple[str, Path]] = []
    fsync, replace_file = os.fsync, Path.replace

    def spy_fsync(handle: int) -> None:
        events.append(("sync", Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    def spy_replace(self: Path, target: Path) -> Path:
        events.append(("rename", self))
        return replace_file(self, target)

    with open_work(tmp_path, MANIFEST) as work:
        monkeypatch.setattr(os, "fsync", spy_fsync)
        monkeypatch.setattr(Path, "replace", spy_replace)
        work.mark("scan", (0,), {})
    (marker,) = markers(work, "scan")
    temp = events[-2][1]
    assert events == [
        ("sync", tmp_path / "done"),
        ("sync", tmp_path / "done" / "scan"),
        ("sync", temp),
        ("rename", temp),
        ("sync", marker.parent),
    ]
    assert temp.parent == marker.parent


def test_finished__damaged_markers__do_not_count(tmp_path: Path) -> None:
    """Cut at any byte, overwritten, in the wrong place, of a wrong form, or still a temporary file: done again."""
    with open_work(tmp_path, MANIFEST) as work:
        work.mark("scan", (1,), {"a": 1})
        work.mark("scan", (2,), {"a": 2})
        victim = next(path for path in markers(work, "scan") if path.stem == "1")
        whole = victim.read_bytes()
        damaged = [whole[:end] for end in range(len(whole))]
        damaged += [bytes(len(whole)), b"\xff" * 9, b"null", b"[]", b"{}", b'{"run": 1}', whole.replace(b"[1]", b"[2]")]
        damaged += [whole.replace(b'{"a": 1}', b"3"), whole.replace(work.run.encode(), b"0123456789abcdef")]
        for content in damaged:
            victim.write_bytes(content)
            assert work.finished("scan") == {(2,): {"a": 2}}, content
        victim.with_name(".c2f-0123456789abcdef.json").write_bytes(whole)
        victim.unlink()
        assert work.finished("scan") == {(2,): {"a": 2}}
        work.mark("scan", (1,), {"a": 3})
        assert work.finished("scan") == {(1,): {"a": 3}, (2,): {"a": 2}}


def test_mark__disk_full__is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine stops at those; the block does not count."""

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    with open_work(tmp_path, MANIFEST) as work:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device"):
            work.mark("scan", (0,), {})
        monkeypatch.undo()
        assert work.finished("scan") == {}


def test_check__folder_not_there__names_the_host(tmp_path: Path) -> None:
    """A worker on another machine may not see it; marking there must not create another one."""
    with open_work(tmp_path / "work", MANIFEST) as work:
        work.check()
    shared = work.folder.rename(tmp_path / "shared")
    with pytest.raises(OutputError, match=f"{socket.gethostname()} does not see the work folder") as caught:
        work.check()
    assert caught.value.remedy.startswith("All workers must see it under this path")
    work.folder.symlink_to(shared)
    work.check()
    work.folder.unlink()
    with pytest.raises(OutputError):
        work.mark("scan", (0,), {})
    assert not work.folder.exists()


@pytest.mark.usefixtures("modes_are_obeyed")
def test_check__folder_of_another_user__remedy_works(tmp_path: Path) -> None:
    """A worker of somebody else may not enter it; one of the user who started the run may."""
    with open_work(tmp_path / "work", MANIFEST) as work:
        (work.folder / "manifest.json").chmod(0)
        with pytest.raises(OutputError, match="may not read the work folder") as caught:
            work.check()
        assert caught.value.remedy.startswith("Start workers as the user who starts the run")
        (work.folder / "manifest.json").chmod(0o600)
        work.check()


@pytest.mark.parametrize("name", ["../x", "/x", "", "a/../../x"])
def test_path__outside__is_refused(tmp_path: Path, name: str) -> None:
    """Phases keep to the work folder, and to their names."""
    with open_work(tmp_path, MANIFEST) as work, pytest.raises(ValueError):
        work.path(name)
    with pytest.raises(ValueError):
        work.mark(name, (0,), {})


def test_manifest_file__is_written_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while it opens its folder leaves nothing that looks like somebody else's."""

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_sync_folder", killed)
    with pytest.raises(KeyboardInterrupt), open_work(tmp_path, MANIFEST):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c2f-lock", "manifest.json"]
    assert json.loads((tmp_path / "manifest.json").read_text())["manifest"]["models"] == {"coarse": "1a2b"}


# --- removing --------------------------------------------------------------------------------------------------------


def test_remove_work__finished_run__leaves_nothing(tmp_path: Path) -> None:
    """Its files go at once, markers included."""
    with open_work(tmp_path / "work", MANIFEST) as work:
        work.mark("scan", (0,), {})
        work.path("x").write_text("x")
    remove_work(tmp_path / "work")
    assert not list(tmp_path.iterdir())


def test_remove_work__somebody_put_a_file_there__stays(tmp_path: Path) -> None:
    """What is not ours is never removed."""
    with open_work(tmp_path / "work", MANIFEST):
        (tmp_path / "work" / "notes.txt").write_text("mine")
    remove_work(tmp_path / "work")
    assert (tmp_path / "work" / "notes.txt").read_text() == "mine"
