"""Options that all commands have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coarse2fine.cli.guard import version

SHELLS = ("bash", "zsh", "tcsh")
_PATHS = {"input", "output", "config"}  # which may also be other things than paths


def add_common_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add ``--version`` and ``--print-completion``; call it when all others are there.

    Args:
        parser: Options whose type is a path are completed by files and folders.

    Returns:
        The parser.
    """
    parser.add_argument("--version", action="version", version=f"coarse2fine {version()}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help="print a script with which bash, zsh or tcsh completes the options",
    )
    return parser


class _PrintCompletion(argparse.Action):
    """Prints the script and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *found: Any) -> None:
        import shtab  # nobody waits for it who asks for something else

        for action in _actions(parser):
            if action.type is Path or action.dest in _PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        sys.stdout.write(shtab.complete(parser, shell=str(found[1])) + "\n")
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
