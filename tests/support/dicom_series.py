"""DICOM series that tests write, slice by slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from coarse2fine.io import Grid


def write_series(folder: Path, voxels: np.ndarray, grid: Grid, **changes: Any) -> list[Path]:
    """Write stored values (z, y, x) as CT slices, in files whose order says nothing; ``changes`` are of every file.

    Returns:
        The files by slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["series"]),
        "FrameOfReferenceUID": generate_uid(entropy_srcs=["frame"]),
    }
    order = np.random.default_rng(0).permutation(len(voxels))
    files = []
    for index, stored in enumerate(voxels):
        content = make_slice(stored, grid, index, **common | changes)
        content.InstanceNumber = int(order[index])
        files.append(folder / f"IM{order[index]:04d}")
        content.save_as(files[-1], enforce_file_format=True)
    return files


def make_slice(stored: np.ndarray, grid: Grid, index: int, **changes: Any) -> FileDataset:
    """One slice of a grid."""
    directions = np.reshape(grid.cosines, (3, 3))
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    fields: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": generate_uid(entropy_srcs=["slice", str(index), str(changes.get("SeriesInstanceUID"))]),
        "PatientName": "Nobody^At^All",
        "PatientID": "../../7",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyDate": "20240102",
        "StudyTime": "030405",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "StudyID": "1",
        "SeriesNumber": 2,
        "SeriesDescription": "THORAX 2.0",
        "Manufacturer": "",
        "Modality": "CT",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": stored.dtype.itemsize * 8,
        "BitsStored": stored.dtype.itemsize * 8,
        "HighBit": stored.dtype.itemsize * 8 - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "PixelSpacing": [_decimal(grid.spacing[1]), _decimal(grid.spacing[2])],
        "SliceThickness": _decimal(grid.spacing[0]),
        "ImageOrientationPatient": [_decimal(part) for part in directions.T[:2].ravel()],
        "ImagePositionPatient": [
            _decimal(part) for part in np.array(grid.origin[::-1]) + index * grid.spacing[0] * directions[:, 2]
        ],
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "RescaleType": "HU",
        "PixelData": stored.tobytes(),
    }
    for name, value in (fields | changes).items():
        if value is not None:
            setattr(content, name, value)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = content.SOPClassUID, content.SOPInstanceUID
    return content


def change(file: Path, **changes: Any) -> None:
    """Change fields of a file; None removes one."""
    content = pydicom.dcmread(file)
    for name, value in changes.items():
        if value is None:
            delattr(content, name)
        else:
            setattr(content, name, value)
    content.save_as(file)


def _decimal(number: float) -> str:
    """As DICOM writes numbers: at most 16 characters."""
    return f"{number:.10g}"[:16]
