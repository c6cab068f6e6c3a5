"""CheXpert, as Stanford publishes it.

``train.csv`` and ``valid.csv``, which name pictures as
``CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg`` from the folder above.
See Irvin and others, AAAI 2019, https://stanfordmlgroup.github.io/competitions/chexpert/.
"""

from __future__ import annotations

import re
from pathlib import Path

from coarse2fine.convert.radiographs import FINDINGS, Radiographs, certain, find_file, present, read_lines
from coarse2fine.errors import ImageError
from coarse2fine.system.terminal import shown

_PARTS = {"train.csv": "train", "valid.csv": "test"}
"""The test set was published later, in another layout, so that the field reports on the validation set."""
_PATH = re.compile(r"(?:.*/)?((?:train|valid)/(patient\d+)/(study\d+)/view\d+_(frontal|lateral)\.\w+)")


def find_chexpert(source: Path, uncertain: str = "zeros", *, frontal: bool = False) -> Radiographs:
    """All pictures with split, view and labels.

    Args:
        source: Folder with ``train.csv`` and ``valid.csv``.
        uncertain: A name of ``radiographs.UNCERTAIN``.
        frontal: Frontal views only.

    Raises:
        ImageError: If a table or all pictures are missing, or a table holds something else.
    """
    records = []
    for name, split in _PARTS.items():
        path = find_file(source, name)
        for line in read_lines(path, "Path", *FINDINGS):
            match = _PATH.fullmatch(line["Path"])
            if match is None:
                raise ImageError(
                    f"{path}: {shown(line['Path'])} is no path of a picture",
                    "It ends in train/patientN/studyN/viewN_frontal.jpg: download the table again.",
                )
            file, patient, study, view = match.groups()
            if view == "frontal" or not frontal:
                labels = {label: certain(line[label], uncertain, path) for label in FINDINGS}
                about = {"file": file, "patient": patient, "study": f"{patient}/{study}", "split": split, "view": view}
                records.append({**about, **labels})
    return present(source, records)
