"""Networks that read and write reports: what they may see."""

from __future__ import annotations

import pytest
import torch

from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.records.text import Reader, TextShape, Writer
from coarse2fine.pretrain.records.vocabulary import BEGIN, END, PAD

SHAPE = TextShape(entries=30, length=10, width=24, depth=2, heads=3)
WORDS = torch.tensor([[BEGIN, 7, 8, 9, END, PAD, PAD], [BEGIN, 11, 12, 13, 14, 15, END]])


def changed(words: torch.Tensor, place: int) -> torch.Tensor:
    other = words.clone()
    other[:, place] = 20
    return other


def test_reader__padding__changes_nothing() -> None:
    """Neither tokens nor their mean depend on how far a report is padded."""
    reader = Reader(SHAPE).eval()
    longer = torch.cat([WORDS, torch.full((2, 3), PAD)], 1)
    assert torch.allclose(reader(WORDS), reader(longer)[:, :7], atol=1e-5)
    assert torch.allclose(reader.pooled(WORDS), reader.pooled(longer), atol=1e-5)
    by_hand = torch.stack([reader(WORDS[:1, :5])[0].mean(0), reader(WORDS[1:])[0].mean(0)])
    assert torch.allclose(reader.pooled(WORDS), by_hand, atol=1e-5)


def test_reader__what_is_added__reaches_every_token() -> None:
    """So that masked words can be found from the image."""
    reader = Reader(SHAPE).eval()
    added = torch.zeros(2, 24, requires_grad=True)
    plain = reader(WORDS)
    assert torch.equal(reader(WORDS, added), plain)
    moved = reader(WORDS, torch.linspace(-3, 3, 24).expand(2, -1))
    assert ((moved - plain).abs().amax(2) > 1e-3).all()


def test_reader__word_anywhere__changes_all_others() -> None:
    """Both directions."""
    reader = Reader(SHAPE).eval()
    moved = (reader(WORDS[1:]) - reader(changed(WORDS[1:], 3))).abs().amax(2)
    assert (moved > 1e-6).all()


def test_writer__later_words__are_not_seen_and_images_are() -> None:
    """What follows a token depends on those before it, and on the image."""
    writer, seen = Writer(SHAPE, 16).eval(), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    before, after = writer(WORDS, seen), writer(changed(WORDS, 3), seen)
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert ((before - after)[:, 3].abs().amax(1) > 1e-5).all()
    assert ((before - writer(WORDS, seen + torch.randn(16))).abs().amax((1, 2)) > 1e-6).all()
    assert before.shape == (2, 7, 30)


def test_text_shape__heads_that_do_not_divide_the_width__are_refused() -> None:
    """By both numbers."""
    with pytest.raises(ConfigError, match="a width of 100 for reports is not divisible by 6 heads"):
        TextShape(30, width=100)
    assert TextShape(30, width=102).width == 102
