"""Being asked to end: a hang-up of the terminal or SIGTERM cleans up as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["SIGHUP", "Stopped", "drop_output", "exit_code", "put_off", "stoppable", "undisturbed"]

SIGHUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""A hang-up of the terminal; there is none on Windows."""
_SIGNALS = (signal.SIGTERM, *((SIGHUP,) if SIGHUP else ()))


class Stopped(KeyboardInterrupt):  # no error, as little as its base
    """A signal asks the process to end; whatever cleans up after Ctrl-C cleans up after this.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """Within this, SIGTERM and SIGHUP raise ``Stopped`` in the main thread.

    The first one only: what follows, such as the second signal that some service managers send, must not cut the
    cleaning short. A signal that the parent process has switched off, as ``nohup`` does, stays off.

    Yields:
        The numbers of the signals that came.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield came
        return

    def stop(number: int, _: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        came.append(number)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def put_off(*numbers: signal.Signals) -> Iterator[None]:
    """Puts off what the process does about signals until this is left.

    So what is begun here can be undone then, and what is undone here is not left half undone. Signals are not blocked:
    processes that are started meanwhile would be deaf to them, too. Where one ends the process at once, it still does.

    Args:
        numbers: Of the signals.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    came: list[int] = []
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def undisturbed() -> Iterator[None]:
    """Cleaning up that Ctrl-C, a hang-up or SIGTERM, the first or a further one, must not cut short; it comes after."""
    with put_off(signal.SIGINT, *_SIGNALS):
        yield


def drop_output() -> None:
    """Where the terminal is gone, gives up what it was to show, or Python would end with another exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  # a name, not a path
                os.dup2(nowhere.fileno(), stream.fileno())


def exit_code(number: int) -> int:
    """What shells report for a process that a signal has ended."""
    return 128 + number
