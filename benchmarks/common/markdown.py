"""Tables in Markdown, for pages that are made from results."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    r"""A Markdown table; the first columns are aligned left, the others right.

    Raises:
        ValueError: If a row does not have as many cells as there are heads.

    Example:
        >>> print(table(["a", "b"], [["x|y", "1"]]))
        | a | b |
        |---|---:|
        | x\|y | 1 |
    """
    if any(len(line) != len(heads) for line in rows):
        raise ValueError(f"each row needs {len(heads)} cells: {', '.join(heads)}")
    rules = "|".join("---" if index < left else "---:" for index in range(len(heads)))
    lines = ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in (heads, *rows)]
    return "\n".join([lines[0], f"|{rules}|", *lines[1:]])


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")
