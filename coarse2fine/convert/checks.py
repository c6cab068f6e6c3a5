"""What must hold of the cases of a raw data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.convert.samples import RawData, Sample
from coarse2fine.errors import VolumeError
from coarse2fine.io import Volume

_MOST_LISTED = 20  # problems in one message


_MOST_VALUES = 10  # that are no label, in one message


_SAME_PLACE = 0.01  # voxels that origins may differ by; float32 headers are better than that


_SAME_DIRECTION = 1e-4


@dataclass(slots=True)
class Findings:
    """What is seen while cases are read, to be judged over the whole data set."""

    problems: list[VolumeError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seen: dict[bytes, str] = field(default_factory=dict)
    voxels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def check_image(sample: Sample, image: Volume[NDArray[Any]], data: RawData) -> None:
    """Refuse an image that cannot be one of the data set."""
    low, high = data.spacings
    spacing = image.grid.spacing
    if not all(low <= step <= high for step in spacing):
        raise VolumeError(
            f"{sample.image.where}: a voxel spacing of {_numbers(spacing)} {data.unit} (z, y, x) is not plausible",
            f"It should lie between {low:g} and {high:g} {data.unit}: correct the header or the unit.",
        )


def note_image(sample: Sample, image: Volume[NDArray[Any]], findings: Findings) -> None:
    """Warns of empty images, and of those with two names: one in training and test makes a test worthless."""
    voxels = np.ascontiguousarray(image.channels[0])
    digest = blake2b(repr((voxels.shape, voxels.dtype.str)).encode(), digest_size=16)
    digest.update(voxels.data.cast("B"))
    twin = findings.seen.setdefault(digest.digest(), sample.name)
    if twin != sample.name:
        findings.warnings.append(f"{sample.name}: the image has the same voxels as {twin}")
    if voxels.min() == voxels.max():  # a missing chunk of a store is no error, but all of them are none to learn from
        findings.warnings.append(f"{sample.name}: all voxels of the image are {voxels.flat[0]}")


def check_grids(sample: Sample, image: Volume[NDArray[Any]], labels: Volume[NDArray[Any]]) -> None:
    """Raises a VolumeError unless voxels of image and labels have the same places."""
    one, other = image.grid, labels.grid
    off = math.dist(one.origin, other.origin)
    for what, same, first, second in (
        ("shapes (z, y, x)", one.shape == other.shape, one.shape, other.shape),
        # nnU-Net's own tolerance: it refuses what differs by more
        ("spacings (z, y, x)", np.allclose(one.spacing, other.spacing), one.spacing, other.spacing),
        ("origins (z, y, x)", off <= _SAME_PLACE * min(one.spacing), one.origin, other.origin),
        (
            "directions",
            np.allclose(one.cosines, other.cosines, rtol=0, atol=_SAME_DIRECTION),
            one.cosines,
            other.cosines,
        ),
    ):
        if not same:
            raise VolumeError(
                f"{sample.name}: image and labels have different {what}: {_numbers(first)} and {_numbers(second)}",
                "Give the labels that were drawn on this image, or resample them to its grid.",
            )


def count_labels(where: str, labels: NDArray[Any], names: Mapping[str, int]) -> NDArray[np.int64]:
    """Voxels per label.

    Raises:
        VolumeError: If there are values that are no label.
    """
    counts = np.zeros(len(names), np.int64)
    odd: set[float] = set()
    for plane in labels:  # temporaries of a plane are small
        valid = (plane >= 0) & (plane < len(names))
        whole = plane.astype(np.int64, casting="unsafe") if valid.all() else np.where(valid, plane, 0).astype(np.int64)
        valid &= whole == plane
        counts += np.bincount(whole[valid], minlength=len(names))
        if not valid.all():
            odd |= {value.item() for value in np.unique(plane[~valid])[:_MOST_VALUES]}
    if odd:
        values = ", ".join(f"{value:g}" for value in sorted(odd)[:_MOST_VALUES])
        values += ", ..." if len(odd) > _MOST_VALUES else ""
        raise VolumeError(
            f"{where} holds values that are no label: {values}",
            f"Labels are whole numbers from 0 to {len(names) - 1}: {', '.join(names)}.",
        )
    return counts


def judge(data: RawData, findings: Findings) -> None:
    """Raises what was found about single cases, or about all together."""
    problems = findings.problems
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [f"\n  - {error.problem}" for error in problems[:_MOST_LISTED]]
        more = f"\n  - and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        raise VolumeError(
            f"{len(problems)} of {len(data.samples)} cases cannot be used:{''.join(lines)}{more}",
            " ".join([*dict.fromkeys(error.remedy for error in problems[:_MOST_LISTED]), "Nothing was written."]),
        )
    if not findings.voxels[1:].any():
        raise VolumeError(
            "no training case has a voxel of any label but background",
            "Give the labels that belong to these images, or cases that have some, and do not hold all of these out.",
        )
    missing = [name for name, value in data.labels.items() if value and not findings.voxels[value]]
    if missing:
        findings.warnings.append(f"no training case has a voxel of: {', '.join(missing)}")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.7g}" for value in values)


def listed(names: Sequence[str]) -> str:
    """The names, or the first of many."""
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more
