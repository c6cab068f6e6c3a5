"""FAFB and other large EM volumes in chunked stores: regions that have labels become cases.

The full adult fly brain is published at https://temca2data.org and described in Zheng et al., Cell 174 (2018) 730-743,
https://doi.org/10.1016/j.cell.2018.06.019: 40 x 4 x 4 nm, one volume, here read from any store that
``coarse2fine.io.open_store`` opens. Its labels are in a store of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from canvas import Box
from coarse2fine.convert.cremi import BACKGROUND
from coarse2fine.convert.crops import covered, crop_sample
from coarse2fine.convert.samples import RawData, Sample
from coarse2fine.errors import VolumeError
from coarse2fine.io import Scales, open_store
from coarse2fine.io.region import parse_region
from coarse2fine.io.stores.presence import check_stored
from coarse2fine.io.volume import Spacing


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How the two stores are read.

    Attributes:
        array: Array of the image in its store; None for the store's own choice.
        label_array: The same for the labels.
        spacing: Voxel size (z, y, x) in ``unit`` of both, where their metadata have none.
        unit: Unit of length of both, where their metadata have none.
    """

    array: str | None = None
    label_array: str | None = None
    spacing: Spacing | None = None
    unit: str | None = None


def find_fafb(
    image: str, labels: str, regions: Sequence[str], options: StoreOptions | None = None, class_name: str = "cleft"
) -> RawData:
    """One case per region.

    Every label but 0 and CREMI's background (0xffffffffffffffff) counts as foreground. The labels may cover a part of
    the image; their place is what the stores' metadata say. Images keep the place of their region, in nm, as origin.

    Args:
        image: Path or URL of the image's store, of which the finest level is used.
        labels: The same for the labels.
        regions: As ``parse_region`` takes them, in voxels of the image or in nm.
        options: How the stores are read.
        class_name: Name of what is labelled.

    Raises:
        VolumeError: If a store cannot be read, or the two do not fit together.
        ConfigError: If a region is none, or has voxels outside of the image.
    """
    options = options or StoreOptions()
    pictures = open_store(image, array=options.array, spacing=options.spacing, unit=options.unit)
    truth = open_store(labels, array=options.label_array, spacing=options.spacing, unit=options.unit, as_labels=True)
    labelled = covered(pictures, truth)
    boxes = {text: parse_region(text, pictures.levels[0].grid) for text in regions}
    for text, box in boxes.items():
        if not labelled.contains(box):
            raise VolumeError(
                f"region {text!r} has voxels {box.start} to {box.stop} (z, y, x), but {labels} covers "
                f"{labelled.start} to {labelled.stop}",
                "Choose regions that are labelled everywhere.",
            )
    return RawData(
        name="FAFB",
        channel="EM",
        labels={"background": 0, class_name: 1},
        unit="nm",
        spacings=(0.5, 1000.0),
        about={
            "description": "Regions of a large EM volume; spacings are in nm, in the field that is called mm",
            "reference": "https://temca2data.org",
            "licence": "The publisher's, see reference",
        },
        samples=tuple(_sample(pictures, truth, box) for box in boxes.values()),
        warnings=tuple(warning for box in boxes.values() for warning in check_stored(pictures, box))
        + tuple(
            f"regions {one!r} and {other!r} overlap"
            for one, other in combinations(boxes, 2)
            if boxes[one].intersection(boxes[other])
        ),
    )


def _sample(image: Scales, labels: Scales, box: Box) -> Sample:
    """The case of a region, which is named after its first voxel."""
    z, y, x = box.start
    stem = re.sub(r"[^A-Za-z0-9]+", "-", image.name).strip("-") or "volume"
    return crop_sample(
        f"{stem}_z{z}_y{y}_x{x}",
        image,
        labels,
        box,
        background=frozenset({0, BACKGROUND}),
        source={"volume": image.name, "labels": labels.name},
    )
