"""Readers and writers, one module per format family; everywhere else arrays and spacings are (z, y, x)."""

from coarse2fine.io.atomic import atomic_write, check_writable
from coarse2fine.io.cases import Case, find_cases, output_path
from coarse2fine.io.images import LABEL_SUFFIXES, read_volume, write_labels
from coarse2fine.io.volume import Grid, Volume

__all__ = [
    "LABEL_SUFFIXES",
    "Case",
    "Grid",
    "Volume",
    "atomic_write",
    "check_writable",
    "find_cases",
    "output_path",
    "read_volume",
    "write_labels",
]
