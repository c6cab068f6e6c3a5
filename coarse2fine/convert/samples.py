"""What a raw data set is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coarse2fine.io import Volume


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """An image or a label map that is yet to be read.

    Attributes:
        where: The file and the place in it, for messages.
        load: Reads it as a volume of one channel.
        file: A ``.nii.gz`` file that holds just this and becomes part of the data set as it is. None if what ``load``
            gives is written.
    """

    where: str
    load: Callable[[], Volume[NDArray[Any]]]
    file: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One case.

    Attributes:
        name: Of the case, unique in the data set.
        image: Its only channel.
        labels: What is true; None for a test case without labels.
        test: Whether it is a test case (imagesTs, labelsTs) and not one for training.
        source: Where it comes from, for dataset.json; nothing that says where on this machine.
    """

    name: str
    image: Part
    labels: Part | None
    test: bool
    source: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class RawData:
    """A data set before it is read.

    Attributes:
        name: After ``Dataset123_``.
        channel: Name of the channel; nnU-Net normalises "CT" by the foreground's statistics, all others by z-score.
        labels: Value of each label by name, 0 (background) to the highest without a gap.
        unit: Of the spacing.
        spacings: Lowest and highest voxel distance that makes sense, in ``unit``.
        about: Further entries of dataset.json, which nnU-Net ignores: reference, licence and the like.
        samples: The cases.
        warnings: What the user should know about how they were found.
    """

    name: str
    channel: str
    labels: Mapping[str, int]
    unit: str
    spacings: tuple[float, float]
    about: Mapping[str, str]
    samples: tuple[Sample, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """A finished data set.

    Attributes:
        folder: Where it lies.
        training: Number of training cases.
        test: Number of test cases.
        warnings: What is allowed, but maybe not wanted.
    """

    folder: Path
    training: int
    test: int
    warnings: tuple[str, ...]
