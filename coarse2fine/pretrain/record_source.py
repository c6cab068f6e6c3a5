"""Pictures with the reports that belong to them, patient by patient."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.errors import ConfigError, ImageError
from coarse2fine.pretrain.objective import Batch
from coarse2fine.pretrain.picture_crops import PictureCrops, PictureData
from coarse2fine.pretrain.pictures import Intensities
from coarse2fine.pretrain.records.vocabulary import LENGTH, Vocabulary, has_words
from coarse2fine.pretrain.table import Table
from coarse2fine.system.terminal import shown
from coarse2fine.system.timing import Ticks

Numbers = NDArray[np.int64]


def with_reports(table: Table, text: str) -> list[int]:
    """Rows of pictures that have a report with words.

    Args:
        table: Of pictures.
        text: Name of the column of reports.

    Raises:
        ImageError: If there is no such column, or none of its fields has words.
    """
    rows = [row for row, report in enumerate(table.column(text)) if has_words(report)]
    if not rows:
        raise ImageError(
            f"{table.where}: none of {len(table)} reports in the column {shown(text)} has words",
            "Name the column that holds them: --text NAME.",
        )
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Pictures and reports; a batch holds as few of the same patient as there can be.

    Attributes:
        crops: Of all pictures that have a report.
        words: Different reports as numbers, shape (reports, length).
        report: Which report a picture has; shape (pictures,).
        patient: Whose it is, counted from 0; shape (pictures,).
        views: How many pictures of the same patient with the same report are drawn, with replacement; None: one.
    """

    crops: PictureCrops
    words: torch.Tensor
    report: Numbers
    patient: Numbers
    views: int | None = None

    @property
    def intensities(self) -> Intensities:
        """How pictures are normalised."""
        return self.crops.intensities

    def draw(self, count: int, generator: np.random.Generator) -> Batch:
        """Records of random patients.

        Returns:
            ``words``, shape (count, length), with ``images``, shape (count, channels, *image), or with ``views``, shape
            (count, views, channels, *image).
        """
        patients = int(self.patient.max()) + 1
        rounds = [generator.permutation(patients) for _ in range(-(-count // patients))]
        chosen = np.concatenate(rounds)[:count]
        pictures = np.array([generator.choice(np.flatnonzero(self.patient == patient)) for patient in chosen])
        words = self.words[torch.from_numpy(self.report[pictures])]
        if self.views is None:
            return {"images": self.crops.crops_of(pictures, generator), "words": words}
        several = np.stack([self._views(picture, generator) for picture in pictures])
        crops = self.crops.crops_of(several.ravel(), generator)
        return {"views": crops.unflatten(0, several.shape), "words": words}

    def _views(self, picture: int, generator: np.random.Generator) -> Numbers:
        """Pictures that tell of the same; shape (views,)."""
        same = (self.patient == self.patient[picture]) & (self.report == self.report[picture])
        return generator.choice(np.flatnonzero(same), self.views)


@dataclass(frozen=True, slots=True, eq=False)
class RecordData:
    """Pictures and reports as data of a pretraining.

    Attributes:
        pictures: That have a report.
        text: Name of the column of reports.
        vocabulary: Of their words.
        length: Most tokens of a report.
        views: See ``Records``.
    """

    pictures: PictureData
    text: str
    vocabulary: Vocabulary
    length: int = LENGTH
    views: int | None = None

    @property
    def about(self) -> dict[str, object]:
        """That of pictures, and what reports and vocabulary are."""
        parts = (self.pictures.table.column(self.text), self.vocabulary.tokenizer.to_str())
        sums = [sha256(json.dumps(part).encode()).hexdigest() for part in parts]
        return {**self.pictures.about, "text": self.text, "reports": sums[0], "vocabulary": sums[1]}

    def open(self, folder: Path, progress: Ticks = lambda done, total: None) -> Records:
        """Records, whose pictures are read unless that was done; errors as of ``open_records``."""
        crops, table = self.pictures.open(folder, progress), self.pictures.table
        return open_records(crops, table, self.text, self.vocabulary, length=self.length, views=self.views)


def open_records(
    crops: PictureCrops,
    table: Table,
    text: str,
    vocabulary: Vocabulary,
    *,
    length: int = LENGTH,
    views: int | None = None,
) -> Records:
    """Records of a table.

    Args:
        crops: Of pictures that have a report, see ``with_reports``.
        table: A row for each of them.
        text: Name of the column of reports.
        vocabulary: Of their words.
        length: Most tokens of a report.
        views: See ``Records``.

    Raises:
        ConfigError: If the length leaves no place for words, or there is no view.
    """
    if length < 3:
        raise ConfigError(f"reports of {length} tokens have no place for words", f"Use 3 or more, such as {LENGTH}.")
    if views is not None and views < 1:
        raise ConfigError(f"{views} views of each patient leave none", "Use 1 or more, such as 3.")
    texts, report = _numbered(table.column(text))
    patient = _numbered(table.patients)[1]
    return Records(crops, vocabulary.encode(texts, length), report, patient, views)


def _numbered(values: Sequence[str]) -> tuple[list[str], Numbers]:
    """Different values in their order, and which of them each one is."""
    place = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return list(place), np.array([place[value] for value in values])
