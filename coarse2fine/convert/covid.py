"""COVID-19-20: lung lesions in chest CT.

Published at https://covid-segmentation.grand-challenge.org/COVID-19-20/ and described in Roth et al., Medical Image
Analysis 82 (2022) 102605, https://doi.org/10.1016/j.media.2022.102605: a folder ``Train`` with 199 pairs
``volume-covid19-A-0003_ct.nii.gz`` and ``volume-covid19-A-0003_seg.nii.gz``, where 1 is lesion, and a folder
``Validation`` with 50 images whose masks were not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarse2fine.convert.files import left_out, list_files, paired, unlabelled, volumes
from coarse2fine.convert.samples import RawData, Sample
from coarse2fine.errors import VolumeError

_CT, _SEG = "_ct.nii.gz", "_seg.nii.gz"
_TRAINING = {"train", "training"}
_TEST = {"validation", "val", "test"}


def find_covid(sources: Sequence[Path]) -> RawData:
    """The cases of COVID-19-20.

    A folder named Validation or Test, and one without any mask, becomes test cases.

    Args:
        sources: The unpacked data set, which holds Train and Validation; or such folders themselves.

    Raises:
        VolumeError: If a folder cannot be read or holds no case, or a pair is not complete.
    """
    samples: list[Sample] = []
    warnings: list[str] = []
    for source in sources:
        for folder in _folders(source):
            found, doubts = _cases(folder)
            samples += found
            warnings += doubts
    return RawData(
        name="COVID1920",
        channel="CT",
        labels={"background": 0, "lesion": 1},
        unit="mm",
        spacings=(0.05, 20.0),
        about={
            "description": "Lung lesions of COVID-19 in chest CT",
            "reference": "https://covid-segmentation.grand-challenge.org/COVID-19-20/",
            "licence": "The publisher's, see reference",
        },
        samples=tuple(samples),
        warnings=tuple(warnings),
    )


def _folders(source: Path) -> list[Path]:
    """The source's Train, Validation and Test, or the source itself if it has none of them."""
    list_files(source)  # it exists and can be read
    parts = [path for path in sorted(source.iterdir()) if path.is_dir() and path.name.lower() in _TRAINING | _TEST]
    return parts or [source]


def _cases(folder: Path) -> tuple[list[Sample], list[str]]:
    """Cases of one folder, and warnings."""
    images, labels = volumes(folder, _CT), volumes(folder, _SEG)
    if not images and not labels:
        raise VolumeError(
            f"{folder} holds no file that ends in {_CT}",
            "Name the folder that holds Train and Validation, or one of these.",
        )
    warnings = left_out(folder, [*images.values(), *labels.values()])
    name = folder.resolve().name
    if not labels and name.lower() not in _TRAINING:
        warnings.append(f"{folder} has no masks: its {len(images)} images become test cases without labels")
        return unlabelled(images, split=name), warnings
    return paired(images, labels, folder, test=name.lower() in _TEST, split=name), warnings
