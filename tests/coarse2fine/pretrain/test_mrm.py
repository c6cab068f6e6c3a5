"""Masked records: both losses by hand, and words that only the image tells are learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from coarse2fine.errors import ConfigError
from coarse2fine.networks.vit import ViT, ViTShape
from coarse2fine.pretrain.mae_tokens import DecoderShape, patch_blocks
from coarse2fine.pretrain.masking import Masking
from coarse2fine.pretrain.mrm import MaskedRecords, deep_blocks, masked_records
from coarse2fine.pretrain.records.text import TextShape
from coarse2fine.pretrain.records.vocabulary import BEGIN, END, PAD

SHAPE = ViTShape(1, (16, 16), (4, 4), width=24, depth=3, heads=3)
TEXT = TextShape(entries=12, length=6, width=24, depth=1, heads=3, dropout=0.0)
CONTINUES = np.zeros(12, bool)


def network() -> ViT:
    torch.manual_seed(0)
    return ViT(SHAPE)


def objective(**options: object) -> MaskedRecords:
    torch.manual_seed(1)
    masking = Masking(patch_blocks(SHAPE), "random", 0.75)
    return masked_records(SHAPE, masking, TEXT, CONTINUES, decoder=DecoderShape(16, 1, 2), **options)  # type: ignore[arg-type]


def records(seed: int, count: int = 12, size: int = 16) -> dict[str, torch.Tensor]:
    """Images of a brightness, and reports of one word that says which."""
    generator = np.random.default_rng(seed)
    kinds = generator.integers(3, size=count)
    images = (kinds[:, None, None, None] - 1.0) + generator.normal(0, 0.1, (count, 1, size, size))
    words = torch.full((count, 6), PAD)
    words[:, 0], words[:, 1], words[:, 2] = BEGIN, torch.from_numpy(kinds + 5), END
    return {"images": torch.from_numpy(images.astype(np.float32)), "words": words}


def test_loss__words_that_only_the_image_tells__are_learned_and_not_with_another_image() -> None:
    """With the right image the hidden word is found; with a shuffled one it is guessed."""
    seen, method = network(), objective(normalised=False)
    optimizer = torch.optim.Adam([*seen.parameters(), *method.heads.parameters()], 3e-3)
    for step in range(45):
        loss = sum(method.loss(seen, method.views(records(step), np.random.default_rng(step))).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    views = dict(method.views(records(999, 30), np.random.default_rng(999)))
    with torch.no_grad():
        right = method.loss(seen, views)
        other = method.loss(seen, {**views, "images": views["images"].roll(1, 0)})
    assert float(right["text"]) < 0.5
    assert float(other["text"]) > 1
    assert float(right["image"]) < 0.1


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("detail", [1, 2])
def test_loss__image__is_the_mean_over_hidden_patches_by_hand(normalised: bool, detail: int) -> None:
    """Patch by patch, in NumPy, also of an image of twice the resolution."""
    seen, method = network(), objective(normalised=normalised, detail=detail)
    images = records(3, 2, 16 * detail)["images"]
    views = method.views({"images": images, "words": records(3, 2)["words"]}, np.random.default_rng(0))
    coarse = images.reshape(2, 1, 16, detail, 16, detail).mean((3, 5))
    assert torch.allclose(views["images"], coarse, atol=1e-6)
    with torch.no_grad():
        painted = method.heads.decoders["3"](seen.tokens(coarse, views["keep"]), views["keep"]).numpy()
        expected, edge, hidden = [], 4 * detail, views["hidden"].numpy()
        for at, number in np.argwhere(hidden):
            top, left = edge * (number // 4), edge * (number % 4)
            patch = images[at, 0, top : top + edge, left : left + edge].numpy().astype(float)
            if normalised:
                patch = (patch - patch.mean()) / np.sqrt(patch.var() + 1e-6)
            expected.append(np.mean((painted[at, number] - patch.ravel()) ** 2))
        assert hidden.sum(1).tolist() == [12, 12]
        assert float(method.loss(seen, views)["image"]) == pytest.approx(np.mean(expected), rel=1e-4)


def test_loss__text__covers_hidden_words_only() -> None:
    """The cross-entropy at masks by hand; other answers elsewhere and more padding change nothing."""
    seen, method = network(), objective()
    words = torch.tensor([[BEGIN, 7, 8, 9, END, PAD], [BEGIN, 5, 6, END, PAD, PAD]])
    views = dict(method.views({**records(0, 2), "words": words}, np.random.default_rng(0)))
    assert views["covered"].sum(1).tolist() == [2, 1]
    method.heads.eval()
    with torch.no_grad():
        loss = float(method.loss(seen, views)["text"])
        mean = seen.tokens(views["images"], views["keep"])[:, 1:].mean(1)
        read = method.heads.reader(views["words"], method.heads.look(mean))
        logs = method.heads.words(read).log_softmax(2)
        by_hand = [-float(logs[row, at, words[row, at]]) for row, at in views["covered"].nonzero().tolist()]
        elsewhere = views | {"answers": torch.where(views["covered"], words, 11)}
        assert float(method.loss(seen, elsewhere)["text"]) == pytest.approx(loss)
        assert method.word_losses(seen, views).tolist() == pytest.approx(by_hand, rel=1e-4)
    assert loss == pytest.approx(np.mean(by_hand), rel=1e-4)


def test_loss__several_depths__are_a_mean_with_equal_weights_and_words_see_the_end_only() -> None:
    """The report's loss is that of plain MRM; early blocks get gradients from painting of their own."""
    seen, deep = network(), objective(blocks=(1, 2), normalised=False)
    assert sorted(deep.heads.decoders) == ["1", "2", "3"]
    views = deep.views(records(0), np.random.default_rng(0))
    alone = []
    for block in ("1", "2", "3"):
        tokens = deep._tokens(seen, views)[block]
        painted = deep.heads.decoders[block](tokens, views["keep"])
        alone.append(((painted - views["target"]) ** 2)[views["hidden"]].mean())
    both = deep.loss(seen, views)
    assert float(both["image"].detach()) == pytest.approx(float(sum(alone).detach()) / 3, rel=1e-5)
    late = torch.autograd.grad(alone[0], list(seen.blocks[1].parameters()), allow_unused=True, retain_graph=True)
    assert all(grad is None for grad in late)
    norms = torch.autograd.grad(both["text"], list(deep.heads.norms.parameters()), allow_unused=True)
    assert all(grad is None for grad in norms)


def test_deep_blocks__twelve__are_those_of_the_paper_and_the_last_one_always_is() -> None:
    """Any depth has some."""
    assert deep_blocks(12) == (6, 8, 10, 12)
    assert [deep_blocks(depth)[-1] for depth in range(1, 25)] == list(range(1, 25))


def test_masked_records__block_or_detail_that_cannot_be__is_refused() -> None:
    """By its value, with what there is."""
    with pytest.raises(ConfigError, match="there is no block 4") as raised:
        objective(blocks=(4,))
    assert "1 to 3" in raised.value.remedy
    with pytest.raises(ConfigError, match="a detail of 0 leaves nothing to paint"):
        objective(detail=0)
    assert replace(objective(), share=0.3).share == 0.3
