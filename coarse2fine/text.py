"""Text for terminals."""

from __future__ import annotations


def plain(text: str) -> str:
    r"""Text of files and file names without the control characters that could play tricks on a terminal.

    >>> plain("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
