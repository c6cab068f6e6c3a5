"""Write docs/reference.md, all commands with all their options, from the commands' own parsers.

python -m benchmarks.assets.make_reference
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from coarse2fine.cli import convert, explain, finetune, infer, predict, prepare, pretrain, train

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"
HEAD = """# All commands and their options

Made of what `--help` says by `python -m benchmarks.assets.make_reference`. What `--set` takes and YAML files say is in [configs/README.md](../configs/README.md).
"""  # noqa: E501 - paragraphs of a page are lines
COMMANDS = (infer, prepare, predict, train, pretrain, finetune, convert, explain)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(line for command in COMMANDS for line in section(command.build_parser(), "##"))])


def section(parser: argparse.ArgumentParser, heading: str) -> Iterator[str]:
    """One command: what it does, its options by group, an example; then its own commands."""
    yield f"{heading} {parser.prog}"
    yield ""
    yield f"{parser.description}"
    yield ""
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if not shown or isinstance(shown[0], argparse._SubParsersAction):
            continue
        if group.title not in ("options", "positional arguments"):
            yield f"{group.title}{f': {group.description}' if group.description else ''}"
            yield ""
        yield "| option | what it does |"
        yield "|---|---|"
        yield from (row(parser, action) for action in shown)
        yield ""
    if parser.epilog:
        start, _, example = parser.epilog.partition(": ")
        yield f"{start}: `{example}`"
        yield ""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from section(command, f"{heading}#")


def row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An option with its value, and its help."""
    formatter = parser._get_formatter()
    value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
    names = ", ".join(action.option_strings) or value
    takes = f" {value}" if action.option_strings and action.nargs != 0 else ""
    told = formatter._expand_help(action) if action.help else ""
    needed = " (needed)" if action.required and action.option_strings else ""
    cells = (f"`{names}{takes}`", f"{told}{needed}")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
