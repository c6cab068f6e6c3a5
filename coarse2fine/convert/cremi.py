"""CREMI: synaptic clefts in serial-section EM of the adult fly brain.

Published at https://cremi.org/data, which also specifies the format: HDF5 files ``sample_A_20160501.hdf`` with
``volumes/raw`` and ``volumes/labels/clefts``, axes (z, y, x), attribute ``resolution`` in nm. In the padded variants
(``sample_A_padded_20160501.hdf``) raw is larger than the labels, whose attribute ``offset`` (z, y, x, in nm) says where
they begin. Voxels that belong to no cleft have the value 0xffffffffffffffff, as the challenge's own evaluation has it:
https://github.com/cremi/cremi_python/blob/master/cremi/evaluation/Clefts.py
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from canvas import Box
from coarse2fine.convert.crops import covered, crop_sample
from coarse2fine.convert.files import list_files
from coarse2fine.convert.samples import Part, RawData, Sample
from coarse2fine.errors import VolumeError
from coarse2fine.io import Volume, open_store

RAW, CLEFTS = "volumes/raw", "volumes/labels/clefts"
BACKGROUND = 0xFFFFFFFFFFFFFFFF
"""Of clefts."""

_ENDINGS = (".hdf", ".h5", ".hdf5")
_PUBLISHED = re.compile(r"(?P<sample>sample_[A-Z]\+?)(?:_padded)?_\d{8}")


def find_cremi(sources: Sequence[Path]) -> RawData:
    """The cases of CREMI, one per file; files without clefts (the challenge's test volumes) become test cases.

    Of padded files, the labelled part is taken. Images keep its place, in nm, as their origin.

    Args:
        sources: HDF5 files, or folders of them.

    Raises:
        VolumeError: If a file is missing or has another layout.
    """
    samples, warnings = [], []
    for file in (file for source in sources for file in _files(source)):
        sample = _sample(file)
        if sample.labels is None:
            warnings.append(f"{file} has no {CLEFTS}: it becomes a test case without labels")
        samples.append(sample)
    return RawData(
        name="CREMI",
        channel="EM",
        labels={"background": 0, "cleft": 1},
        unit="nm",
        spacings=(0.5, 1000.0),
        about={
            "description": "Synaptic clefts in serial-section EM; spacings are in nm, in the field that is called mm",
            "reference": "https://cremi.org/data",
            "licence": "The publisher's, see reference",
        },
        samples=tuple(samples),
        warnings=tuple(warnings),
    )


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = [file for file in list_files(source) if file.suffix in _ENDINGS]
    if not files:
        raise VolumeError(f"{source} holds no file that ends in {', '.join(_ENDINGS)}", "Name CREMI's files.")
    return files


def _sample(file: Path) -> Sample:
    """The case of a file, from its metadata."""
    image = open_store(str(file), array=RAW)
    labels, box = None, Box.whole(image.levels[0].grid.shape)
    with h5py.File(file) as content:
        labelled = CLEFTS in content
    if labelled:
        labels = open_store(str(file), array=CLEFTS, as_labels=True)
        if labels.levels[0].channels[0].dtype != np.uint64:
            raise VolumeError(f"{file}:{CLEFTS} is not uint64", "Store them as such: CREMI's background needs 64 bits.")
        whole, box = box, covered(image, labels)
        if not whole.contains(box):
            raise VolumeError(
                f"{file}: {CLEFTS} covers voxels {box.start} to {box.stop} (z, y, x) of {RAW}, which has {whole.stop}",
                "Correct the attribute offset; it is in nm.",
            )
    match = _PUBLISHED.fullmatch(file.stem)
    name = (match["sample"] if match else file.stem).replace("+", "plus")
    sample = crop_sample(name, image, labels, box, background=frozenset({BACKGROUND}), source={"file": file.name})
    return replace(sample, labels=_checked(sample.labels)) if sample.labels else sample


def _checked(clefts: Part) -> Part:
    """The part, with an error if it does not use CREMI's background, so that everything counts as cleft."""

    def load() -> Volume[NDArray[Any]]:
        volume = clefts.load()
        if volume.channels[0].all():
            raise VolumeError(
                f"{clefts.where}: no voxel has the value of CREMI's background, 0xffffffffffffffff",
                "Set voxels outside of clefts to it.",
            )
        return volume

    return Part(clefts.where, load)
