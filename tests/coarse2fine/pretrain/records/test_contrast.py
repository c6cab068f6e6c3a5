"""Contrast of images and reports, against brute force and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from coarse2fine.pretrain.records.contrast import contrast, found_among


def rows(seed: int, count: int = 12, width: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, width)))


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_contrast__any_share__equals_the_formula_by_brute_force(share: float) -> None:
    """Pair by pair, in NumPy."""
    images, reports = rows(0), rows(1)

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    forth, back = [], []
    for index in range(12):
        own = np.exp(cosine(images[index], reports[index]) / 0.1)
        forth.append(-np.log(own / sum(np.exp(cosine(images[index], other) / 0.1) for other in reports)))
        back.append(-np.log(own / sum(np.exp(cosine(other, reports[index]) / 0.1) for other in images)))
    expected = share * np.mean(forth) + (1 - share) * np.mean(back)
    assert float(contrast(images, reports, 0.1, share)) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_contrast__either_direction__has_gradients_for_both(share: float) -> None:
    """Neither side is detached."""
    images, reports = rows(0).requires_grad_(), rows(1).requires_grad_()
    contrast(images, reports, 0.1, share).backward()
    for side in (images, reports):
        assert side.grad is not None
        assert (side.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("most", [1, 3, 10])
def test_found_among__random_rows__equals_scikit_learns_top_k(most: int) -> None:
    """Each report is a class."""
    images, reports = rows(2, 30), rows(3, 30)
    cosines = torch.nn.functional.cosine_similarity(images[:, None], reports[None], dim=2).numpy()
    assert float(found_among(images, reports, most).mean()) == pytest.approx(
        top_k_accuracy_score(np.arange(30), cosines, k=most)
    )


def test_found_among__all_alike__is_chance() -> None:
    """A network that has collapsed finds nothing."""
    same = torch.ones(40, 4)
    assert found_among(same, same, 10).tolist() == [0.25] * 40
    assert found_among(rows(1), rows(1), 1).min() == 1
