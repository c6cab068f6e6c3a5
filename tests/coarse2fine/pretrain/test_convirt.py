"""Contrast of images and reports learns which belong together; of one view or of several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from coarse2fine.networks.vit import ViT, ViTShape
from coarse2fine.pretrain.convirt import Convirt, convirt
from coarse2fine.pretrain.records.contrast import found_among
from coarse2fine.pretrain.records.text import TextShape
from coarse2fine.pretrain.records.vocabulary import BEGIN, END, PAD
from coarse2fine.pretrain.refers import Refers, refers

TEXT = TextShape(entries=12, length=6, width=24, depth=1, heads=3, dropout=0.0)


def network() -> ViT:
    torch.manual_seed(0)
    return ViT(ViTShape(1, (16, 16), (8, 8), width=24, depth=1, heads=3))


def records(seed: int, count: int = 7, views: int | None = None) -> dict[str, torch.Tensor]:
    """Images of stripes, and reports of one word that says how wide they are."""
    generator = np.random.default_rng(seed)
    kinds = np.arange(count) % 7
    images = np.sin(np.arange(16) * (kinds[:, None] + 1) / 6)[:, None, None] * np.ones((16, 1))
    words = torch.full((count, 6), PAD)
    words[:, 0], words[:, 1], words[:, 2] = BEGIN, torch.from_numpy(kinds + 5), END
    shape = (count, 1, 16, 16) if views is None else (count, views, 1, 16, 16)
    broad = images if views is None else images[:, None]
    noisy = np.broadcast_to(broad, shape) + generator.normal(0, 0.1, shape)
    return {"images" if views is None else "views": torch.from_numpy(noisy.astype(np.float32)), "words": words}


def learn(objective: Convirt | Refers, seen: nn.Module, steps: int, views: int | None) -> list[float]:
    optimizer = torch.optim.Adam([*seen.parameters(), *objective.heads.parameters()], 3e-3)
    losses = []
    for step in range(steps):
        found = objective.loss(seen, objective.views(records(step, views=views), np.random.default_rng(step)))
        loss = found if isinstance(found, torch.Tensor) else sum(found.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("several", [False, True])
def test_loss__stripes_and_their_names__are_found_again(several: bool) -> None:
    """On new images, each report is nearest to the image that it tells of."""
    seen, views = network(), 3 if several else None
    objective = refers(seen, TEXT, width=16) if several else convirt(seen, TEXT, width=16)
    losses = learn(objective, seen, 40, views)
    assert losses[-1] < 0.5 * losses[0]
    new = records(999, views=views)
    with torch.no_grad():
        images = objective.of_images(seen.eval(), new["views" if several else "images"])
        assert found_among(images, objective.of_reports(new["words"]), 1).min() == 1


def test_refers__each_loss__has_gradients_for_the_images_network_and_contrast_for_the_reports_too() -> None:
    """No direction is detached."""
    seen = network()
    objective, batch = refers(seen, TEXT, width=16), records(0, views=3)
    for share in (0.0, 1.0):
        one = Refers(objective.heads, share=share)
        losses = one.loss(seen, batch)
        for loss, parts in (("caption", [seen]), ("contrast", [seen, one.heads.space.reader])):
            for part in parts:
                grads = torch.autograd.grad(losses[loss], list(part.parameters()), retain_graph=True, allow_unused=True)
                assert sum(float(grad.abs().sum()) for grad in grads if grad is not None) > 1e-4


def test_caption__padding_and_first_token__do_not_count() -> None:
    """The mean of the cross-entropies of the words that follow, by hand."""
    seen = network()
    objective = refers(seen, TEXT, width=16)
    words = torch.tensor([[BEGIN, 7, 8, END, PAD, PAD], [BEGIN, 9, END, PAD, PAD, PAD]])
    with torch.no_grad():
        fused = objective.fuse(seen, records(0, 2, views=3)["views"])
        logits = objective.heads.eval().writer(words, fused).log_softmax(2)
    expected = [logits[0, 0, 7], logits[0, 1, 8], logits[0, 2, END], logits[1, 0, 9], logits[1, 1, END]]
    assert float(objective.caption(fused, words).detach()) == pytest.approx(-float(sum(expected)) / 5, rel=1e-5)


def test_fuse__weights__are_sigmoids_of_all_views_by_hand() -> None:
    """One weight for each view, from the mean features of all."""
    seen = network().eval()
    objective, views = refers(seen, TEXT, views=2, width=16), records(0, 3, views=2)["views"]
    with torch.no_grad():
        tokens = torch.stack([seen.tokens(views[:, at])[:, 1:] for at in range(2)], 1)
        linear = objective.heads.fusion
        logits = tokens.mean(2).reshape(3, -1) @ linear.weight.T + linear.bias
        expected = sum(tokens[:, at] / (1 + torch.exp(-logits[:, at, None, None])) for at in range(2))
        assert torch.allclose(objective.fuse(seen, views), expected, atol=1e-5)
