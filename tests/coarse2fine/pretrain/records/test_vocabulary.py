"""Words as numbers: trained alike wherever it is trained, loaded without running anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coarse2fine.errors import ConfigError, ModelError
from coarse2fine.pretrain.records.vocabulary import BEGIN, END, MASK, PAD, SPECIAL, UNKNOWN, Vocabulary

REPORTS = [
    "The heart is normal in size. The lungs are clear.",
    "Opacity in the right lower lobe, pneumonia possible. No effusion.",
    "Small left-sided pleural effusion; Cardiomegaly. Clear right lung.",
    "No pneumothorax. Naïve patient, 65-year-old.",
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(REPORTS)


def test_encode__report__begins_ends_is_padded_and_decodes_to_its_words(vocabulary: Vocabulary) -> None:
    """Lower case, no accents."""
    (row,) = vocabulary.encode([REPORTS[3]], 40).tolist()
    end = row.index(END)
    assert row[0] == BEGIN
    assert set(row[end + 1 :]) == {PAD}
    assert vocabulary.decode(row).replace(" ", "") == "nopneumothorax.naivepatient,65-year-old."


def test_encode__new_word__is_made_of_the_longest_entries_by_brute_force(vocabulary: Vocabulary) -> None:
    """Greedily from the left, later pieces with ##."""
    entries, word, pieces = vocabulary.tokenizer.get_vocab(), "cardiopulmonary", []
    at = 0
    while at < len(word):
        names = (("##" if at else "") + word[at:end] for end in range(len(word), at, -1))
        pieces.append(next(name for name in names if name in entries))
        at += len(pieces[-1].removeprefix("##"))
    row = vocabulary.encode([word])[0].tolist()
    assert row[1 : 1 + len(pieces)] == [entries[name] for name in pieces]
    assert vocabulary.continues[row[1 : 1 + len(pieces)]].tolist() == [False] + [True] * (len(pieces) - 1)


def test_encode__long_and_empty_reports_and_masks_as_text__fit(vocabulary: Vocabulary) -> None:
    """Cut with an end; a report without words has nothing between; text is never taken for a special token."""
    rows = vocabulary.encode(["heart " * 300, "", "[MASK]", "\ud800 heart", "日"], 12)
    heart = vocabulary.tokenizer.get_vocab()["heart"]
    assert rows[0].tolist() == [BEGIN, *[heart] * 10, END]
    assert rows[1].tolist() == [BEGIN, END, *[PAD] * 10]
    assert MASK not in rows[2]
    assert rows[3].tolist() == [BEGIN, heart, END, *[PAD] * 9]
    assert rows[4].tolist()[:3] == [BEGIN, UNKNOWN, END]


@pytest.mark.parametrize("size", [30_000, 100])
def test_train__size__is_an_upper_bound_that_few_words_do_not_reach(size: int) -> None:
    """And special tokens come first."""
    vocabulary = Vocabulary.train(REPORTS, size)
    assert vocabulary.size == size if size == 100 else 100 < vocabulary.size < size
    assert [vocabulary.tokenizer.id_to_token(number) for number in range(5)] == list(SPECIAL)


def test_train__again_and_again__gives_the_same_entries() -> None:
    """Ties are broken alike, which the library alone does not do."""
    first, *others = (Vocabulary.train(REPORTS * 3, 120).tokenizer.to_str() for _ in range(12))
    assert all(other == first for other in others)


def test_train__too_small_for_its_letters__names_the_least_size_which_works() -> None:
    """Every letter has an entry of its own."""
    with pytest.raises(ConfigError, match="a vocabulary of 20 is too small") as raised:
        Vocabulary.train(REPORTS, 20)
    least = int("".join(filter(str.isdigit, raised.value.remedy)))
    assert Vocabulary.train(REPORTS, least).size == least
    with pytest.raises(ConfigError, match="the vocabulary's size is 5"):
        Vocabulary.train(REPORTS, 5)


def test_train__reports_without_words__are_refused() -> None:
    """Punctuation is no word."""
    with pytest.raises(ConfigError, match="the reports hold no words") as raised:
        Vocabulary.train(["", " ... ", "--"])
    assert "--text" in raised.value.remedy


def test_save_and_load__file__gives_the_same_numbers(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """JSON, also after entries were shown to another program."""
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert (loaded.encode(REPORTS) == vocabulary.encode(REPORTS)).all()
    assert np.array_equal(loaded.continues, vocabulary.continues)
    assert json.loads((tmp_path / "vocabulary.json").read_text())["model"]["type"] == "WordPiece"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document["normalizer"].update(lowercase=False), "of another kind"),
        (lambda document: document["model"]["vocab"].pop("[MASK]"), "of another kind"),
        (lambda document: document["model"]["vocab"].update(heart=70_000), "of another kind"),
        (lambda document: document["model"]["vocab"].update(heart=-1), "damaged or no vocabulary"),
        (lambda document: document["model"].update(vocab="/etc/hostname"), "damaged or no vocabulary"),
        (lambda document: document.pop("model"), "damaged or no vocabulary"),
    ],
)
def test_load__changed_file__is_refused(change: object, words: str, vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Nothing of it is taken, and a name of a file in it is not opened."""
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    document = json.loads(path.read_text())
    change(document)  # type: ignore[operator]
    path.write_text(json.dumps(document))
    with pytest.raises(ModelError, match=words) as raised:
        Vocabulary.load(path)
    assert "train a new one" in raised.value.remedy


def test_load__no_file_or_no_json__is_refused(tmp_path: Path) -> None:
    """In one line."""
    with pytest.raises(ModelError, match="cannot be read"):
        Vocabulary.load(tmp_path / "missing.json")
    (tmp_path / "other.json").write_bytes(b"\x80\x04]")
    with pytest.raises(ModelError, match="damaged or no vocabulary"):
        Vocabulary.load(tmp_path / "other.json")
