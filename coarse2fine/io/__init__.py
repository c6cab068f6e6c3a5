"""Readers and writers, one module per format family; everywhere else arrays and spacings are (z, y, x)."""

from coarse2fine.io.atomic import atomic_folder, atomic_write, check_folder, check_writable
from coarse2fine.io.dicom.members import DICOM_SUFFIX
from coarse2fine.io.dicom.segmentation import check_segmentation, write_segmentation
from coarse2fine.io.files.cases import (
    Case,
    LabelledCase,
    find_cases,
    find_labelled_cases,
    input_suffixes,
    label_suffixes,
    output_path,
)
from coarse2fine.io.files.images import LABEL_SUFFIXES, read_volume, write_labels, write_voxels
from coarse2fine.io.lazy import LazyArray
from coarse2fine.io.owned import make_own
from coarse2fine.io.stores.cremi import write_cremi
from coarse2fine.io.stores.hdf5 import read_attributes
from coarse2fine.io.stores.labelstore import LabelSpec, LabelStore, create_labels, open_labels, pyramid_factors
from coarse2fine.io.stores.scales import Scales
from coarse2fine.io.stores.volumes import is_store, open_store
from coarse2fine.io.volume import Grid, Volume, VoxelArray

__all__ = [
    "DICOM_SUFFIX",
    "LABEL_SUFFIXES",
    "Case",
    "Grid",
    "LabelSpec",
    "LabelStore",
    "LabelledCase",
    "LazyArray",
    "Scales",
    "Volume",
    "VoxelArray",
    "atomic_folder",
    "atomic_write",
    "check_folder",
    "check_segmentation",
    "check_writable",
    "create_labels",
    "find_cases",
    "find_labelled_cases",
    "input_suffixes",
    "is_store",
    "label_suffixes",
    "make_own",
    "open_labels",
    "open_store",
    "output_path",
    "pyramid_factors",
    "read_attributes",
    "read_volume",
    "write_cremi",
    "write_labels",
    "write_segmentation",
    "write_voxels",
]
