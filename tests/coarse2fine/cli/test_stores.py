"""c2f-infer on stores as a process of its own, at a terminal: it is stopped, and goes on."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from conftest import blobs
from large_volumes import write_image

import coarse2fine
from coarse2fine.cli.infer import main

pytestmark = [pytest.mark.alone, pytest.mark.skipif(sys.platform == "win32", reason="no such signals and terminals")]

SOON_S = 300  # on a busy machine
COMMAND = "import sys; from coarse2fine.cli.infer import main; sys.exit(main())"
INTERRUPTED = "interrupted: finished results are kept, the one in progress was not written"
CELLS = 16


@dataclass
class Terminal:
    """A process with a terminal of its own.

    Attributes:
        process: Leads the terminal's session.
        side: Ours of the terminal.
        shown: What was written to it.
        closed: Set to close it, as a window is closed.
    """

    process: subprocess.Popen[bytes]
    side: int
    shown: bytearray = field(default_factory=bytearray)
    closed: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Reads until the terminal is closed; only who reads may close, or another file may get its number."""
        with suppress(OSError):  # nobody is left at the other side
            while not self.closed.is_set():
                if select.select([self.side], [], [], 0.05)[0]:
                    self.shown += os.read(self.side, 10_000)
        os.close(self.side)

    @property
    def lines(self) -> list[str]:
        """What was written, without colours, bars that move, and the echo of keys."""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\^C", "", self.shown.decode(errors="replace"))
        return [line.strip() for line in text.splitlines() if line.strip() and "━" not in line]


def at_the_terminal() -> None:
    """Before the command starts: the terminal is its own, and it heeds all signals, also if the tests don't."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def terminal(folder: Path, *arguments: object) -> Iterator[Terminal]:
    """c2f-infer in a folder of its own, with ``tmp`` beside it for temporary files."""
    for name in ("here", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x28\0\xc8\0" + bytes(4))  # 40 rows of 200 characters
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=folder / "here",
        preexec_fn=at_the_terminal,
        env=os.environ | {
            "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", "TERM": "xterm",
            "PYTHONPATH": str(Path(coarse2fine.__file__).parents[1]),
        },
    )  # fmt: skip
    os.close(theirs)
    shell = Terminal(process, ours)
    reader = threading.Thread(target=shell.watch, daemon=True)
    reader.start()
    try:
        yield shell
        reader.join(1)  # what was written last
    finally:
        process.kill()
        process.wait()
        shell.closed.set()
        reader.join()


def wait(condition: Callable[[], object], shell: Terminal) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert shell.process.poll() is None, shell.lines
        assert time.monotonic() < end, shell.lines
        time.sleep(0.02)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[..., Path]) -> tuple[list[object], np.ndarray]:
    """Arguments of a run over some cells, but for the output, and its labels if nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_image(folder / "in.zarr", blobs((8, 32, 32 * CELLS)), chunk=32)
    settings = ["mode=one-stage", "fine.mirroring=false", "blocks.cell=[8, 32, 32]"]
    settings += ["blocks.per_block=[1, 1, 1]", "blocks.halo=[0, 4, 4]"]
    arguments: list[object] = ["-i", folder / "in.zarr", "--fine-model", model_folder(seed=1)]
    arguments += [part for setting in settings for part in ("--set", setting)]
    assert main([*map(str, arguments), "-o", str(folder / "a.zarr")]) == 0
    labels = labels_of(folder)
    assert len(np.unique(labels)) > 1
    return arguments, labels


def labels_of(folder: Path) -> np.ndarray:
    return np.asarray(zarr.open_group(folder / "a.zarr", mode="r")["0"])


def ctrl_c(shell: Terminal) -> None:
    """To all processes of the terminal."""
    os.write(shell.side, b"\x03")


def hang_up(shell: Terminal) -> None:
    shell.closed.set()


def terminate(shell: Terminal) -> None:
    shell.process.send_signal(signal.SIGTERM)


def terminate_all(shell: Terminal) -> None:
    """As service managers and batch systems do."""
    os.killpg(shell.process.pid, signal.SIGTERM)


def finished(folder: Path) -> dict[Path, int]:
    """When each cell was noted as done; what is half written begins with a dot."""
    done = folder.glob("out/a.zarr.c2f-work/done/segment/*/[0-9]*.json")
    return {path: path.stat().st_mtime_ns for path in done}


def in_the_middle(folder: Path, _: Terminal) -> bool:
    return bool(finished(folder))


def while_workers_start(folder: Path, shell: Terminal) -> bool:
    return len(psutil.Process(shell.process.pid).children(recursive=True)) >= 2


@pytest.mark.parametrize(
    ("workers", "when"),
    [((), in_the_middle), (("--workers", 2), in_the_middle), (("--workers", 2), while_workers_start)],
    ids=["1 process", "2 workers", "2 workers that start"],
)
@pytest.mark.parametrize(("stop", "code"), [(ctrl_c, 130), (hang_up, 129), (terminate, 143), (terminate_all, 143)])
def test_main__store_run_is_stopped__leaves_nothing_but_the_work_folder_and_goes_on(
    tmp_path: Path,
    run: tuple[list[object], np.ndarray],
    stop: Callable[[Terminal], None],
    code: int,
    workers: tuple[object, ...],
    when: Callable[[Path, Terminal], bool],
) -> None:
    """One line, the exit code of the signal, no process and no file left behind; the same command does the rest."""
    (tmp_path / "out").mkdir()
    arguments, undisturbed = [*run[0], "-o", tmp_path / "out/a.zarr", *workers], run[1]
    with terminal(tmp_path, *arguments) as shell:
        wait(lambda: when(tmp_path, shell), shell)
        others = psutil.Process(shell.process.pid).children(recursive=True)
        stop(shell)
        assert shell.process.wait(timeout=SOON_S) == code, shell.lines
        assert psutil.wait_procs(others, timeout=SOON_S)[1] == []
    assert shell.lines == ([] if stop is hang_up else [INTERRUPTED])
    before = finished(tmp_path)
    assert len(before) < CELLS
    if when is in_the_middle:
        assert before
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.zarr.c2f-work"]
    assert list((tmp_path / "tmp").iterdir()) == list((tmp_path / "here").iterdir()) == []
    with terminal(tmp_path, *arguments) as shell:
        redone: dict[Path, int] = {}
        while shell.process.poll() is None:
            with suppress(FileNotFoundError):  # published meanwhile
                redone |= finished(tmp_path)
            time.sleep(0.02)
        assert shell.process.returncode == 0, shell.lines
    assert {path: redone[path] for path in before} == before
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), undisturbed)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.zarr"]
    assert list((tmp_path / "tmp").iterdir()) == list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("asked", [True, False])
def test_main__dashboard__has_a_page_only_if_asked_for(
    tmp_path: Path, run: tuple[list[object], np.ndarray], asked: bool
) -> None:
    """Its address is told, and answers, and nothing of the run listens to others than this machine."""
    options = ["-o", tmp_path / "out/a.zarr", "--workers", 2, *(["--dashboard"] if asked else [])]
    (tmp_path / "out").mkdir()
    with terminal(tmp_path, *run[0], *options) as shell:
        wait(lambda: in_the_middle(tmp_path, shell), shell)
        address = re.search(r"dashboard: (\S+)", "\n".join(shell.lines))
        assert bool(address) == asked, shell.lines
        process = psutil.Process(shell.process.pid)
        listening = [
            link.laddr
            for each in (process, *process.children(recursive=True))
            for link in each.net_connections("tcp")
            if link.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert {link.ip for link in listening} <= {"127.0.0.1", "::1"}
        if address:
            with urllib.request.urlopen(address[1], timeout=SOON_S) as page:
                assert b"Dask" in page.read()
        assert shell.process.wait(timeout=SOON_S) == 0, shell.lines
