"""Whole words are hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.records.vocabulary import BEGIN, END, MASK, PAD, SPECIAL
from coarse2fine.pretrain.records.words import hide_words

CONTINUES = np.array([False] * 10 + [True] * 10)
"""Of entries 0 to 9 each begins a word, 10 to 19 go on with one."""

reports = st.lists(
    st.lists(st.tuples(st.integers(5, 9), st.lists(st.integers(10, 19), max_size=3)), max_size=8),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40)
@given(reports, st.floats(0.01, 0.99), st.integers(0, 9))
def test_hide_words__any_reports__hides_all_tokens_of_the_exact_share_of_words(
    report: list[list[tuple[int, list[int]]]], ratio: float, seed: int
) -> None:
    """Word by word; what begins, ends and pads is never hidden, nor is anything else changed."""
    length = 40
    spans, rows = [], np.full((len(report), length), PAD)
    for row, words in zip(rows, report, strict=True):
        flat, span = [BEGIN], []
        for first, rest in words:
            span.append((len(flat), len(flat) + 1 + len(rest)))
            flat += [first, *rest]
        row[: len(flat) + 1] = [*flat, END]
        spans.append(span)
    hidden_rows, masks = hide_words(torch.from_numpy(rows), CONTINUES, ratio, np.random.default_rng(seed))
    for row, mask, seen, span in zip(rows, masks.numpy(), hidden_rows.numpy(), spans, strict=True):
        whole = [mask[start:end] for start, end in span]
        assert all(part.all() or not part.any() for part in whole)
        count = sum(part.all() for part in whole)
        assert count == min(max(round(ratio * len(span)), 1), len(span))
        assert mask.sum() == sum(len(part) for part in whole if part.all())
        assert (seen == np.where(mask, MASK, row)).all()
        assert not mask[row < len(SPECIAL)].any()


def test_hide_words__many_draws__hide_each_word_alike() -> None:
    """No place is preferred."""
    words = torch.tensor([[BEGIN, 5, 6, 10, 7, 8, END, PAD]]).repeat(4000, 1)
    share = hide_words(words, CONTINUES, 0.5, np.random.default_rng(0))[1].float().mean(0)
    assert share.tolist() == pytest.approx([0, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0], abs=0.04)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, float("nan")])
def test_hide_words__share_that_hides_nothing_or_all__is_refused(ratio: float) -> None:
    """By its value."""
    with pytest.raises(ConfigError, match=f"the share of hidden words is {ratio:g}"):
        hide_words(torch.tensor([[BEGIN, 5, END]]), CONTINUES, ratio, np.random.default_rng(0))
