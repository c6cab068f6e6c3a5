"""How a command ends: errors in users' words, and exit codes. Needs nothing that takes long to import."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import TYPE_CHECKING

from coarse2fine.errors import C2FError
from coarse2fine.system.memory import is_memory_full
from coarse2fine.system.signals import drop_output, exit_code, stoppable
from coarse2fine.system.terminal import plain

if TYPE_CHECKING:
    from rich.console import Console

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def guarded(action: Callable[[Console], None]) -> int:
    """Run a command, which gets a console for what it has to tell; returns the exit code.

    A hang-up of the terminal and SIGTERM clean up as Ctrl-C does.
    """
    code = EXIT_ERROR
    with stoppable() as came:
        try:
            code = attempt(action)
        except BaseException:  # with the terminal gone, not even a progress bar can be cleared
            if not came:
                raise
    if came:
        drop_output()
    return exit_code(came[0]) if came else code


def attempt(action: Callable[[Console], None]) -> int:
    """Run a command; returns the exit code. What users can mend is told without a traceback."""
    from rich.console import Console

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    try:
        action(console)
    except KeyboardInterrupt:
        console.print("interrupted: finished results are kept, the one in progress was not written")
        return EXIT_INTERRUPTED
    except Exception as error:
        known = told(error)
        if known is None:
            raise
        return fail(console, str(known))
    return 0


def told(error: Exception, smaller: str = "crop the volume") -> C2FError | None:
    """An error in users' words; None for a bug.

    Args:
        error: That ended something.
        smaller: What else makes a run take less memory.
    """
    if isinstance(error, C2FError):
        return error
    if isinstance(error, OSError):  # what is wrong with inputs and outputs is a C2FError already; this may hit any file
        return C2FError(str(error), "Check that the files and folders are there and that you may use them.")
    if not is_memory_full(error):
        return None
    if is_memory_full(error, on_gpu=True):
        return C2FError("the GPU's memory is full", "Use a GPU that has more of it free, or --device cpu.")
    return C2FError(
        "out of memory",
        "Check that the spacing in the file's header has the unit of the model's training data. If it has, "
        f"{smaller}, or use a larger machine.",
    )


def fail(console: Console, message: str) -> int:
    """Print an error; returns the exit code."""
    console.print("error:", style="bold red", end=" ")
    console.print(plain(message), soft_wrap=True)
    return EXIT_ERROR


def version() -> str:
    """The installed version."""
    try:
        return importlib.metadata.version("coarse2fine")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "not installed"
