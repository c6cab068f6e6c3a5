"""Text for terminals."""

from __future__ import annotations

import reprlib

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 3, 100, 100, 40


def plain(text: str) -> str:
    r"""Text of files and file names without the control characters that could play tricks on a terminal.

    >>> plain("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def shown(value: object) -> str:
    """A stranger's value in a message: as Python writes it, but never at length, however large or deep it is.

    >>> shown([1, "a"])
    "[1, 'a']"
    >>> shown("x" * 10**6)[:5]
    "'xxxx"
    """
    try:
        text = plain(_REPR.repr(value))
    except (ValueError, RecursionError):  # an integer with more digits than Python converts
        text = f"one {type(value).__name__}"
    return text if len(text) <= 300 else f"{text[:297]}..."
