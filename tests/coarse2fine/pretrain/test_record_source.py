"""Pictures with reports: who is drawn with whom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from coarse2fine.errors import ConfigError, ImageError
from coarse2fine.pretrain.picture_crops import PictureCrops
from coarse2fine.pretrain.pictures import Intensities
from coarse2fine.pretrain.record_source import Records, open_records, with_reports
from coarse2fine.pretrain.records.vocabulary import Vocabulary
from coarse2fine.pretrain.table import Row, Table

REPORTS = {"a": ["one lung", "one lung", "two lungs"], "b": ["clear"], "c": ["heart", ""], "d": ["...", ""]}


def table() -> Table:
    rows = [(patient, report) for patient, reports in REPORTS.items() for report in reports]
    return Table(
        Path("table.csv"),
        tuple(
            Row(f"{at}.png", Path(f"{at}.png"), patient, {"notes": report}) for at, (patient, report) in enumerate(rows)
        ),
    )


def records(views: int | None = None) -> tuple[Records, Table]:
    """Pictures whose pixels all hold the number of their row."""
    whole = table()
    rows = with_reports(whole, "notes")
    pixels = np.broadcast_to(np.array(rows, np.uint8)[:, None, None, None], (len(rows), 1, 8, 8))
    crops = PictureCrops(pixels, Intensities((0.0,), (1.0,)))
    kept = whole.take(rows)
    return open_records(crops, kept, "notes", Vocabulary.train(kept.column("notes")), length=8, views=views), whole


def told(words: torch.Tensor, whole: Table, text: str) -> bool:
    vocabulary = Vocabulary.train([report for report in whole.column("notes") if any(map(str.isalnum, report))])
    return bool((words == vocabulary.encode([text], 8)[0]).all())


def test_with_reports__pictures_without_words__are_left_out() -> None:
    """Punctuation is no word."""
    assert with_reports(table(), "notes") == [0, 1, 2, 3, 4]


def test_with_reports__no_words_at_all_or_no_column__is_refused() -> None:
    """By the column's name; another column works."""
    none = table().take([5, 6, 7])
    with pytest.raises(ImageError, match=r"none of 3 reports in the column 'notes' has words") as raised:
        with_reports(none, "notes")
    assert "--text NAME" in raised.value.remedy
    with pytest.raises(ImageError, match="no column 'report'") as raised:
        with_reports(none, "report")
    assert "notes" in raised.value.remedy


def test_draw__three_of_three_patients__is_each_once_with_their_own_report() -> None:
    """Picture and words belong together."""
    source, whole = records()
    for seed in range(20):
        batch = source.draw(3, np.random.default_rng(seed))
        rows = batch["images"].mean((1, 2, 3)).round().int().tolist()
        assert sorted(whole.patients[row] for row in rows) == ["a", "b", "c"]
        assert all(
            told(words, whole, whole.column("notes")[row]) for words, row in zip(batch["words"], rows, strict=True)
        )


def test_draw__more_than_patients__repeats_each_as_rarely_as_can_be() -> None:
    """And all pictures of a patient are drawn."""
    source, whole = records()
    batch = source.draw(60, np.random.default_rng(0))
    rows = batch["images"].mean((1, 2, 3)).round().int().tolist()
    patients = [whole.patients[row] for row in rows]
    assert {patient: patients.count(patient) for patient in "abc"} == {"a": 20, "b": 20, "c": 20}
    assert set(rows) == {0, 1, 2, 3, 4}


def test_draw__views__are_of_one_patient_and_one_report() -> None:
    """With replacement where there are fewer."""
    source, whole = records(views=3)
    batch = source.draw(30, np.random.default_rng(1))
    assert batch["views"].shape == (30, 3, 1, 8, 8)
    rows = batch["views"].mean((2, 3, 4)).round().int().tolist()
    kinds = {tuple(sorted({(whole.patients[row], whole.column("notes")[row]) for row in views})) for views in rows}
    assert kinds == {(("a", "one lung"),), (("a", "two lungs"),), (("b", "clear"),), (("c", "heart"),)}
    assert any({0, 1} <= set(views) for views in rows)


def test_draw__same_generator__is_the_same() -> None:
    """All randomness comes from it."""
    source, _ = records(views=2)
    first, second = (source.draw(5, np.random.default_rng(7)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_open_records__no_place_for_words_or_no_view__is_refused() -> None:
    """By its value."""
    source, whole = records()
    kept = whole.take(range(5))
    vocabulary = Vocabulary.train(["heart"])
    with pytest.raises(ConfigError, match="reports of 2 tokens have no place for words"):
        open_records(source.crops, kept, "notes", vocabulary, length=2)
    with pytest.raises(ConfigError, match="0 views of each patient leave none"):
        records(views=0)
    assert open_records(source.crops, kept, "notes", vocabulary, length=3).words.shape == (4, 3)
