"""A hang-up and SIGTERM clean up as Ctrl-C does."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

import coarse2fine
from coarse2fine.system.signals import Stopped, put_off, stoppable, undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stoppable__signal__unwinds_once_and_handlers_are_as_before(number: signal.Signals) -> None:
    """A second signal does not cut the cleaning short."""
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    cleaned = []
    with stoppable() as came:  # noqa: SIM117
        with pytest.raises(Stopped) as caught:  # noqa: PT012
            try:
                os.kill(os.getpid(), number)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGHUP)
                cleaned.append(True)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert came == [number]
    assert cleaned == [True]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == before


def test_stoppable__nohup__stays_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has switched a signal off means it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as came:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert came == []


def test_stoppable__in_another_thread__changes_nothing() -> None:
    """Only the main thread may set handlers."""
    seen = []

    def inside() -> None:
        with stoppable() as came:
            seen.append((came, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [([], before)]


def test_put_off__signal_while_something_is_begun__comes_when_it_can_be_undone() -> None:
    """Neither lost nor early, and heeded once; other processes are not made deaf."""
    steps: list[str] = []
    with stoppable() as came, pytest.raises(Stopped):  # noqa: PT012
        with put_off(signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGTERM)
            child = subprocess.Popen(["sleep", "60"])
            child.terminate()
            steps.append("begun")
        steps.append("not stopped")
    assert steps == ["begun"]
    assert came == [signal.SIGTERM]
    assert child.wait(timeout=30) == -signal.SIGTERM


def test_put_off__no_signal_or_no_handler__changes_nothing() -> None:
    """What would end the process at once still does."""
    before = signal.getsignal(signal.SIGTERM)
    with put_off(signal.SIGTERM):
        assert signal.getsignal(signal.SIGTERM) is before
    with stoppable() as came:
        handler = signal.getsignal(signal.SIGTERM)
        with put_off(signal.SIGTERM):
            pass
        assert signal.getsignal(signal.SIGTERM) is handler
    assert came == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_undisturbed__signals_while_cleaning_up__all_is_cleaned_and_the_first_one_heeded(
    number: signal.Signals,
) -> None:
    """One that comes in the middle does not cut it short, and is not lost."""
    steps: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
    try:
        with stoppable(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
            with undisturbed():
                for each in (number, signal.SIGINT, signal.SIGTERM):
                    os.kill(os.getpid(), each)
                steps.append("cleaned")
            steps.append("not stopped")
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps == ["cleaned"]


WAITS = """
import sys, time
from pathlib import Path
from rich.progress import Progress
from coarse2fine.cli.guard import guarded
from coarse2fine.io import atomic_write
path = Path(sys.argv[1])
def action(console):
    with Progress(console=console) as bars, atomic_write(path) as temp:
        bars.add_task("read", total=1)
        temp.write_text("half")
        path.with_suffix(".ready").touch()
        time.sleep(60)
sys.exit(guarded(action))
"""


@pytest.mark.alone
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_guarded__terminal_and_signal__leave_no_temporary_file(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The exit code is 128 + signal, even where the terminal is gone, with a progress bar on it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(tmp_path / "out.json")],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        cwd=Path(coarse2fine.__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while not (tmp_path / "out.ready").exists():
        assert process.poll() is None, shown.decode()
        shown += os.read(ours, 1000)
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.close(ours)  # the terminal is gone: the kernel sends SIGHUP
    assert process.wait(timeout=60) == code
    assert [path.name for path in tmp_path.iterdir()] == ["out.ready"]
    if number == signal.SIGTERM:
        os.close(ours)
