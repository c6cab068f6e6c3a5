"""Tables of measures that commands write."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from coarse2fine.errors import ConfigError
from coarse2fine.io import check_writable
from coarse2fine.measures import TABLE_SUFFIXES, columns_of, write_table
from coarse2fine.report import RunReport

UNIT = "mm"
"""Of files, whatever their numbers are."""


def check_table(options: argparse.Namespace) -> None:
    """Refuse options that make no table.

    Raises:
        ConfigError: If objects are asked for without one.
        OutputError: If it cannot be written.
    """
    if options.instances and not options.table:
        raise ConfigError(
            f"--instances without --table, and {options.input} is a volume of files, whose labels stay labels",
            "Add --table FILE.csv for a row of each object, or leave --instances out.",
        )
    if options.table:
        check_writable(options.table, options.overwrite, TABLE_SUFFIXES)


def write_measures(reports: Sequence[RunReport], options: argparse.Namespace, channels: int) -> None:
    """Write the measures of all cases, each row with the name of its case."""
    rows = (
        {"case": report.case, **row}
        for report in reports
        for row in (report.objects if options.instances else report.measures)
    )
    columns = ("case", *columns_of(UNIT, channels, objects=options.instances))
    write_table(rows, columns, options.table)
