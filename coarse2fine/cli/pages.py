"""The pages that ``c2f-infer`` writes: which files they are, and of a folder the index."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coarse2fine.cli.series import is_one_series
from coarse2fine.errors import ConfigError
from coarse2fine.io import Case, check_writable

SUFFIXES = (".html",)


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages of a run.

    Attributes:
        index: What ``--page`` names: the index of a folder, or the page of the only case.
        title: What the index is called.
        by_case: The page of each case, those of other parts of the folder included.
        is_folder: Whether there is an index.
    """

    index: Path
    title: str
    by_case: Mapping[str, Path]
    is_folder: bool

    def files(self, cases: Sequence[Case]) -> tuple[Path, ...]:
        """What is written when these cases are done."""
        return tuple(dict.fromkeys((self.index, *(self.by_case[case.name] for case in cases))))

    def finish(self, failures: Mapping[str, str]) -> None:
        """Write the index, of a folder.

        Args:
            failures: Why cases have no page, by name.

        Raises:
            OutputError: If it cannot be written.
        """
        from coarse2fine.page.index import write_index  # its templates take long to load

        if self.is_folder:
            write_index(self.index, self.title, self.by_case, failures)


def pages_of(options: argparse.Namespace, cases: Sequence[Case]) -> Pages | None:
    """The pages that options ask for.

    Args:
        options: Of the command line.
        cases: All of a folder, or the only one.

    Raises:
        ConfigError: If there is none for what shall be on it.
    """
    index: Path | None = options.page
    if index is None:
        for name in ("viewer", "explain"):
            if getattr(options, name):
                raise ConfigError(f"--{name} without --page", f"Add --page FILE.html, or leave --{name} out.")
        return None
    source = Path(options.input)
    beside = index.with_name(f"{index.stem}_files")
    is_folder = source.is_dir() and not is_one_series(cases)
    by_case = {case.name: beside / f"{case.name}.html" if is_folder else index for case in cases}
    return Pages(index, source.resolve().name, by_case, is_folder)


def check_page(page: Path, *, overwrite: bool, again: bool) -> None:
    """Find out before anything runs whether a page can be written.

    Args:
        page: The file.
        overwrite: Whether any file may be replaced.
        again: Whether pages of ours may be, which another run over the same folder has made.

    Raises:
        OutputError: If it cannot be written.
    """
    from coarse2fine.page.index import is_page

    check_writable(page, overwrite or (again and is_page(page)), SUFFIXES)
