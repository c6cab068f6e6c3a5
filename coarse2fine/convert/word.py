"""WORD: 16 abdominal organs in CT.

Published at https://github.com/HiLab-git/WORD and described in Luo et al., Medical Image Analysis 82 (2022) 102642,
https://arxiv.org/abs/2111.02403: 100 cases for training (imagesTr, labelsTr), 20 for validation (imagesVal, labelsVal)
and 30 for testing (imagesTs, labelsTs), named ``word_0002.nii.gz``
(https://github.com/openmedlab/Awesome-Medical-Dataset/blob/main/resources/WORD.md).
"""

from __future__ import annotations

from pathlib import Path

from coarse2fine.convert.files import left_out, paired, volumes
from coarse2fine.convert.samples import RawData
from coarse2fine.errors import VolumeError

LABELS = {
    "background": 0,
    "liver": 1,
    "spleen": 2,
    "left_kidney": 3,
    "right_kidney": 4,
    "stomach": 5,
    "gallbladder": 6,
    "esophagus": 7,
    "pancreas": 8,
    "duodenum": 9,
    "colon": 10,
    "intestine": 11,
    "adrenal": 12,
    "rectum": 13,
    "bladder": 14,
    "Head_of_femur_L": 15,
    "Head_of_femur_R": 16,
}
"""Names and values as users of WORD list them, such as the table in
https://github.com/openmedlab/Awesome-Medical-Dataset/blob/main/resources/WORD.md. Compare them with the data set's own
``dataset.json``, which we have not seen."""


def find_word(source: Path) -> RawData:
    """The cases of WORD.

    Training cases are WORD's; its validation and test cases become test cases, and dataset.json says which is which.
    WORD's test images are left out where their labels are missing (they were published later, as a file of their own).

    Args:
        source: The folder that holds imagesTr and the others.

    Raises:
        VolumeError: If imagesTr is missing, or a pair is not complete.
    """
    samples, warnings = [], []
    for split in ("Tr", "Val", "Ts"):
        folder, label_folder = source / f"images{split}", source / f"labels{split}"
        images, labels = volumes(folder), volumes(label_folder)
        if split == "Tr" and not images:
            raise VolumeError(f"{folder} holds no .nii.gz file", "Name the folder that holds WORD's imagesTr.")
        if not images and not labels:
            warnings.append(f"{folder} is not there: no cases of WORD's {split} split")
            continue
        for place, files in ((folder, images), (label_folder, labels)):
            if files:
                warnings += left_out(place, list(files.values()))
        if split == "Ts" and not labels:
            warnings.append(f"{folder}: {len(images)} images left out, because {label_folder} holds no labels")
            continue
        samples += paired(images, labels, source, test=split != "Tr", split=split)
    return RawData(
        name="WORD",
        channel="CT",
        labels=LABELS,
        unit="mm",
        spacings=(0.05, 20.0),
        about={
            "description": "Whole abdominal organ dataset: 16 organs in CT",
            "reference": "https://github.com/HiLab-git/WORD",
            "licence": "GPL-3.0 and for academic research only, says the reference",
        },
        samples=tuple(samples),
        warnings=tuple(warnings),
    )
