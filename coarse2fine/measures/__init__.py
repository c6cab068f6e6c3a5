"""How large things are that were found, where they lie, and how bright they are; as rows of tables."""

from coarse2fine.measures.measuring import Intensity, Measure, Place, measure, place_of
from coarse2fine.measures.table import TABLE_SUFFIXES, columns_of, row_of, write_table

__all__ = [
    "TABLE_SUFFIXES",
    "Intensity",
    "Measure",
    "Place",
    "columns_of",
    "measure",
    "place_of",
    "row_of",
    "write_table",
]
