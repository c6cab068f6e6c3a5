"""The exceptions that users see: every message names the offending value and the remedy."""

from __future__ import annotations

__all__ = [
    "C2FError",
    "ConfigError",
    "DeadlineError",
    "ImageError",
    "ModelError",
    "OutputError",
    "UntrustedModelError",
    "VolumeError",
    "reason_of",
]


class C2FError(Exception):
    """Base of all errors that the command line prints without a traceback.

    Args:
        problem: What is wrong, naming the file, key or value.
        remedy: What the user can do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}\n  {remedy}" if remedy else problem)


class ConfigError(C2FError):
    """A configuration file or an override is not valid."""


class ModelError(C2FError):
    """A model folder is missing, incomplete, or does not fit the volume or the other model."""


class UntrustedModelError(ModelError):
    """A model folder asks for code outside the allowlist."""


class VolumeError(C2FError):
    """An input volume cannot be read or is not something that a 3D model can segment."""


class ImageError(C2FError):
    """A picture, or a table of pictures, cannot be read or does not fit."""


class OutputError(C2FError):
    """A result cannot be written."""


class DeadlineError(C2FError):
    """A run cannot end as early as is asked for."""


def reason_of(error: BaseException) -> str:
    """What a library says of a stranger's file, in one line: some say pages, and some nothing.

    >>> reason_of(ValueError("no number" + chr(10) + "in line 7")), reason_of(EOFError())
    ('no number', 'EOFError')
    """
    return str(error).partition("\n")[0][:200] or type(error).__name__
