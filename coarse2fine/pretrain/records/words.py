"""Whole words of a report are hidden, for a network to find them from the rest and from the image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.records.vocabulary import MASK, SPECIAL

RATIO = 0.5


def hide_words(
    words: torch.Tensor, continues: NDArray[np.bool_], ratio: float, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace all tokens of some words by [MASK].

    Args:
        words: Reports as numbers, shape (n, length).
        continues: Which numbers go on with a word, shape (entries,).
        ratio: Share of words that is hidden, rounded, but at least one of each report.
        generator: Source of random numbers.

    Returns:
        The reports with masks, and where they are; both (n, length), on the device of the reports.

    Raises:
        ConfigError: If the ratio does not lie between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise ConfigError(f"the share of hidden words is {ratio:g}", f"It must lie between 0 and 1, such as {RATIO}.")
    numbers = words.cpu().numpy()
    real = numbers >= len(SPECIAL)
    first = real & ~continues[numbers]
    first |= real & ~np.pad(real, ((0, 0), (1, 0)))[:, :-1]  # nothing that is known comes before it
    word = np.cumsum(first, 1) - 1  # counts from 0 in each report
    hidden = np.zeros_like(real)
    for row in range(len(numbers)):
        count = int(first[row].sum())
        chosen = np.zeros(count + 1, bool)
        chosen[generator.permutation(count)[: min(max(round(ratio * count), 1), count)]] = True
        hidden[row] = chosen[word[row]] & real[row]
    mask = torch.from_numpy(hidden).to(words.device)
    return words.masked_fill(mask, MASK), mask
