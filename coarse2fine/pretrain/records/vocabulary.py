"""Words as numbers: WordPiece (Wu and others, 2016), trained and applied by ``tokenizers``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.errors import ConfigError, ModelError
from coarse2fine.io import atomic_write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = "vocabulary.json"
SIZE = 30_000
"""Entries, unless another number is asked for; a text with few words gives fewer."""
LENGTH = 100
"""Tokens of a report, with those that begin and end it."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, BEGIN, END, MASK = range(len(SPECIAL))

_CONTINUES = "##"
"""How an entry begins that goes on with a word."""
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """What words are made of.

    Attributes:
        tokenizer: In lower case, without accents, split at white space and punctuation.
    """

    tokenizer: Tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], size: int = SIZE) -> Self:
        """The most useful pieces of words of some texts.

        Args:
            texts: Reports.
            size: Most entries, the special ones included.

        Raises:
            ConfigError: If there are no words in the texts, or the size is too small for their letters.
        """
        from tokenizers.trainers import WordPieceTrainer

        if size <= len(SPECIAL):
            raise ConfigError(f"the vocabulary's size is {size}", f"It must be above {len(SPECIAL)}, such as {SIZE}.")
        tokenizer, texts = _pipeline({name: number for number, name in enumerate(SPECIAL)}), list(map(_clean, texts))
        if not any(map(has_words, texts)):
            raise ConfigError("the reports hold no words", "Name the column of the table that holds them: --text NAME.")
        # Letters inside of words are numbered as the trainer meets them, in random order, and ties go by these numbers:
        # named before, they make the result depend on nothing but the texts (huggingface/tokenizers 1794).
        special = [*SPECIAL, *_inner_letters(tokenizer, texts)]
        trainer = WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        if tokenizer.get_vocab_size() > size:  # every letter has an entry of its own
            raise ConfigError(
                f"a vocabulary of {size} is too small for the letters of these reports",
                f"Use {tokenizer.get_vocab_size()} or more.",
            )
        return cls(_pipeline(tokenizer.get_vocab()))

    @classmethod
    def load(cls, path: Path) -> Self:
        """The vocabulary of a file, which holds entries and the names of steps, but no code.

        Raises:
            ModelError: If it is missing, damaged, or prepares text in another way.
        """
        remedy = "Use one that a pretraining wrote, or leave it out to train a new one."
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ModelError(f"{path} is larger than {_MOST_BYTES >> 20} MiB", remedy)
            document = json.loads(path.read_text(encoding="utf-8"))
            entries = dict(document["model"]["vocab"].items())  # a name would be opened as a file
            tokenizer = _pipeline(entries)
            same = json.loads(tokenizer.to_str()) == document
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}", remedy) from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise ModelError(f"{path} is damaged or no vocabulary", remedy) from None
        special = [entries.get(name) for name in SPECIAL]
        if not same or special != list(range(len(SPECIAL))) or set(entries.values()) != set(range(len(entries))):
            raise ModelError(f"{path} is a vocabulary of another kind", remedy)
        return cls(tokenizer)

    def save(self, path: Path) -> None:
        """Write it in the format of ``tokenizers``; errors as of ``atomic_write``."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")

    @property
    def size(self) -> int:
        """Entries."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def continues(self) -> NDArray[np.bool_]:
        """Whether an entry goes on with a word that another began; shape (size,)."""
        going = np.zeros(self.size, bool)
        for text, number in self.tokenizer.get_vocab().items():
            going[number] = text.startswith(_CONTINUES) and text != _CONTINUES
        return going

    def encode(self, texts: Sequence[str], length: int = LENGTH) -> torch.Tensor:
        """Reports as numbers, which begin with [CLS] and end with [SEP]; longer ones are cut, shorter ones padded.

        Returns:
            Shape (texts, length), whole numbers.
        """
        rows = torch.full((len(texts), length), PAD)
        pieces = self.tokenizer.encode_batch([_clean(text) for text in texts], add_special_tokens=False)
        for row, encoded in zip(rows, pieces, strict=True):
            numbers = [BEGIN, *encoded.ids[: length - 2], END]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows

    def decode(self, numbers: Sequence[int]) -> str:
        """Words of numbers, without the special ones."""
        from tokenizers.decoders import WordPiece

        shown = (self.tokenizer.id_to_token(number) for number in numbers if number >= len(SPECIAL))
        return str(WordPiece(_CONTINUES).decode([text for text in shown if text is not None]))


def has_words(text: str) -> bool:
    """Whether anything of a text can become a token of its own: a letter or a digit."""
    return any(character.isalnum() for character in text)


def _clean(text: str) -> str:
    """Without what cannot be encoded, such as half of a character that a damaged file left over."""
    return text.encode("utf-8", "ignore").decode("utf-8")


def _inner_letters(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """Entries for letters that are not the first of a word, sorted."""
    letters: set[str] = set()
    for text in texts:
        words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        letters.update(*(word[1:] for word, _ in words))
    return [_CONTINUES + letter for letter in sorted(letters)]


def _pipeline(entries: dict[str, int]) -> Tokenizer:
    """Lower case, words and punctuation apart, then the longest entries; what is in none of them is [UNK]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(vocab=entries, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
