"""Labels as a DICOM segmentation (SEG) of the series that they were made from."""

from __future__ import annotations

import importlib.metadata
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import C2FError, ConfigError, OutputError, reason_of
from coarse2fine.io.atomic import atomic_write
from coarse2fine.io.dicom.members import open_members
from coarse2fine.io.dicom.series import stack_of
from coarse2fine.io.dicom.slices import pydicom_of_extra

_NAME = "coarse2fine"
_LONGEST_LABEL = 64  # characters of a DICOM "long string"
_SERIES_NUMBER = 900  # as those of other results, behind what scanners number


def check_segmentation(source: Path, names: Mapping[str, Collection[int]]) -> None:
    """Finds out before a long run whether there can be a segmentation of a series.

    Raises:
        ConfigError: If highdicom is not installed.
        OutputError: If the series lacks what a segmentation refers to.
        VolumeError: If the series is no volume.
    """
    _check_installed()
    images = _images(source)[:1]
    with _told(source):
        _packed(_segmentation(np.zeros((1, images[0].Rows, images[0].Columns), np.uint8), names, images))


def write_segmentation(
    labels: NDArray[np.unsignedinteger[Any]], names: Mapping[str, Collection[int]], source: Path, path: Path
) -> None:
    """Write a segment for each name that refers to the series' images; atomically.

    Args:
        labels: Shape (z, y, x) of the series.
        names: Label values by name; regions may overlap.
        source: The series' folder or zip file.
        path: The file.

    Raises:
        OutputError: If it cannot be written, or the series is no longer what it was.
    """
    _check_installed()
    images = _images(source)
    if labels.shape != (len(images), images[0].Rows, images[0].Columns):
        raise OutputError(
            f"cannot write {path}: {source} no longer has the {len(labels)} slices that were segmented",
            "Leave the series alone while it is segmented.",
        )
    with _told(source):
        content = _packed(_segmentation(labels, names, images))
    with atomic_write(path, needed=len(content)) as temporary:
        temporary.write_bytes(content)


def _check_installed() -> None:
    pydicom_of_extra()
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "writing DICOM SEG needs highdicom, which is not installed", "Install it: pip install pydicom highdicom"
        ) from error


def _images(source: Path) -> list[Any]:
    """The headers of all slices as they lie."""
    library = pydicom_of_extra()
    images = []
    with open_members(source) as members:
        for one in stack_of(source, members).slices:
            with one.member.open() as stream:
                images.append(library.dcmread(stream, stop_before_pixels=True))
    return images


@contextmanager
def _told(source: Path) -> Iterator[None]:
    """Turns what highdicom and pydicom raise for fields that are missing or odd into one clear error."""
    log = logging.getLogger("highdicom")  # tells of empty segmentations, which are no news here
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (C2FError, MemoryError):
        raise
    except Exception as error:  # strangers' fields make them raise anything
        raise OutputError(
            f"no DICOM segmentation can be made of {source}: {reason_of(error)}",
            "Write .nii.gz instead, or complete the series: a segmentation repeats what it says of patient and study.",
        ) from error
    finally:
        log.setLevel(before)


def _segmentation(labels: NDArray[Any], names: Mapping[str, Collection[int]], images: Sequence[Any]) -> Any:
    import highdicom

    content = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=_segments(labels, names),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(names),
        series_instance_uid=highdicom.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=_NAME,
        manufacturer_model_name=_NAME,
        software_versions=_version(),
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description="Made by an algorithm",
    )
    content.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, as names of segments may need
    return content


def _packed(content: Any) -> memoryview:
    """The bytes of a file."""
    stream = io.BytesIO()
    content.save_as(stream)
    return stream.getbuffer()


def _segments(labels: NDArray[Any], names: Mapping[str, Collection[int]]) -> NDArray[Any]:
    """Numbers of segments, shape of the labels; where segments overlap, one mask for each, along a last axis."""
    values = [set(of) for of in names.values()]
    if sum(map(len, values)) == len(set().union(*values)):
        table = np.zeros(max(max(of, default=0) for of in values) + 1, np.uint8 if len(values) < 256 else np.uint16)
        for number, of in enumerate(values, 1):
            table[list(of)] = number
        return table[labels]
    return np.stack([np.isin(labels, list(of)) for of in values], axis=-1).astype(np.uint8)


def _descriptions(names: Mapping[str, Collection[int]]) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_NAME, family=codes.DCM.ArtificialIntelligence, version=_version()
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=_plain(name) or f"segment {number}",
            segmented_property_category=codes.SCT.Tissue,  # the general one: names are free text
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names, 1)
    ]


def _plain(name: str) -> str:
    """A name as DICOM can hold it."""
    return "".join("_" if letter == "\\" or not letter.isprintable() else letter for letter in name)[
        :_LONGEST_LABEL
    ].strip()


def _version() -> str:
    try:
        return importlib.metadata.version(_NAME)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
