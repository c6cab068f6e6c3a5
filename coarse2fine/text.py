"""Text for terminals."""

from __future__ import annotations

import reprlib


def plain(text: str) -> str:
    r"""Text of files and file names without the control characters that could play tricks on a terminal.

    >>> plain("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def shown(value: object) -> str:
    """A stranger's value, for a message: never in full, since it may be endless or hold itself.

    >>> shown([[0] * 1000] * 1000)
    '[[0, 0, 0, 0, 0, 0, ...], [0, 0, 0, 0, 0, 0, ...], [0, 0, 0, 0, 0, 0, ...], ...]'
    """
    try:
        return plain(reprlib.repr(value))
    except (ValueError, RecursionError):  # an integer of more digits than Python writes down, or a very deep value
        return f"a {type(value).__name__} too long to show"
