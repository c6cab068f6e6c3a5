"""MIMIC-CXR-JPG with the reports of MIMIC-CXR, as PhysioNet publishes them.

``files/p10/p10000032/s50414267/DICOM_ID.jpg``, tables ``mimic-cxr-2.0.0-split``, ``-metadata`` and ``-chexpert`` as
.csv or .csv.gz, and reports ``files/p10/p10000032/s50414267.txt``. See Johnson and others, Scientific Data 2019,
https://physionet.org/content/mimic-cxr-jpg/2.0.0/.
"""

from __future__ import annotations

import re
from pathlib import Path

from coarse2fine.convert.radiographs import (
    FINDINGS,
    Radiographs,
    certain,
    find_file,
    present,
    read_lines,
)
from coarse2fine.errors import ImageError

_TABLE = "mimic-cxr-2.0.0-{}.csv"
_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_FRONTAL = ("AP", "PA")
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /&,()-]*[A-Z)])[ \t]*:", re.MULTILINE)
_SECTIONS = ("FINDINGS", "IMPRESSION")


def find_mimic_cxr(
    source: Path, reports: Path | None = None, uncertain: str = "zeros", *, frontal: bool = False
) -> Radiographs:
    """All pictures with split, view, labels and report.

    Args:
        source: Folder with ``files`` and the tables.
        reports: Folder whose ``files`` hold reports; None: the same.
        uncertain: A name of ``radiographs.UNCERTAIN``.
        frontal: Frontal views only.

    Raises:
        ImageError: If a table, all pictures or all reports are missing, or a table holds something else.
    """
    labels_path = find_file(source, _TABLE.format("chexpert"))
    labels = {
        line["study_id"]: {name: certain(line[name], uncertain, labels_path) for name in FINDINGS}
        for line in read_lines(labels_path, "study_id", *FINDINGS)
    }
    views = {
        line["dicom_id"]: line["ViewPosition"]
        for line in read_lines(find_file(source, _TABLE.format("metadata")), "dicom_id", "ViewPosition")
    }
    none = dict.fromkeys(FINDINGS, "0")
    records, texts = [], {}
    for line in read_lines(find_file(source, _TABLE.format("split")), "dicom_id", "study_id", "subject_id", "split"):
        view, patient, study = views.get(line["dicom_id"], ""), f"p{line['subject_id']}", f"s{line['study_id']}"
        if frontal and view not in _FRONTAL:
            continue
        folder = f"files/{patient[:3]}/{patient}"
        if study not in texts:
            texts[study] = _report((reports or source) / folder / f"{study}.txt")
        records.append(
            {
                "file": f"{folder}/{study}/{line['dicom_id']}.jpg",
                "patient": patient,
                "study": study,
                "split": _SPLITS.get(line["split"], line["split"]),
                "view": view,
                **labels.get(line["study_id"], none),
                "text": texts[study],
            }
        )
    data = present(source, records)
    told = sum(bool(record["text"]) for record in data.records)
    if not told:
        raise ImageError(
            f"{reports or source} holds no reports, such as {folder}/{study}.txt",
            "Unpack mimic-cxr-reports.zip of MIMIC-CXR, and name its folder: --reports DIR.",
        )
    left = len(data.records) - told
    more = [f"{left} pictures have no report; what learns from reports leaves them out"] if left else []
    return Radiographs(data.records, (*data.warnings, *more))


def _report(path: Path) -> str:
    try:
        return sections(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def sections(text: str) -> str:
    r"""Findings and impression of a report; where there are neither, its last paragraph.

    >>> sections("FINAL REPORT\n INDICATION: Cough.\n\n FINDINGS: Clear\n lungs.\n\n IMPRESSION:  Normal.")
    'Clear lungs. Normal.'
    """
    parts = _HEADING.split(text)
    found = {name: body for name, body in zip(parts[1::2], parts[2::2], strict=True) if body.strip()}
    chosen = [found[name] for name in _SECTIONS if name in found]
    if not chosen:
        chosen = [part for part in re.split(r"\n\s*\n", text) if part.strip()][-1:]
    return " ".join(" ".join(chosen).split())
