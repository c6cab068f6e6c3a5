"""Losses and what is kept of outputs, against MONAI, scikit-learn and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from coarse2fine.finetune.tasks import Classification, Segmentation


@pytest.mark.parametrize("shape", [(9, 7), (5, 6, 7)])
def test_loss__segmentation__is_the_dice_and_cross_entropy_of_monai(shape: tuple[int, ...]) -> None:
    """Of the foreground, over the whole batch, with gradients."""
    torch.manual_seed(0)
    logits = torch.randn(3, 4, *shape, requires_grad=True)
    targets = torch.randint(0, 4, (3, *shape), dtype=torch.uint8)
    oracle = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    expected = oracle(logits, targets[:, None].long())
    loss = Segmentation(("b", "x", "y", "z")).loss(logits, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (theirs,) = torch.autograd.grad(expected, logits)
    (ours,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_classification__several_labels__each_by_itself() -> None:
    """The loss is the mean log loss of all answers, accuracy the share of right ones, AUROC the macro average."""
    generator = np.random.default_rng(0)
    logits, targets = generator.normal(size=(30, 3)), (generator.random((30, 3)) < 0.4).astype(np.float32)
    task = Classification(("a", "b", "c"))
    found = task.probabilities(torch.from_numpy(logits)).numpy()
    loss = task.loss(torch.from_numpy(logits), torch.from_numpy(targets))
    assert loss.item() == pytest.approx(log_loss(targets.ravel(), found.ravel()))
    measures = task.measure(list(found), list(targets), [str(number) for number in range(30)])
    assert measures["auroc"].value == pytest.approx(roc_auc_score(targets, found))
    assert measures["auroc b"].value == pytest.approx(roc_auc_score(targets[:, 1], found[:, 1]))
    assert measures["accuracy"].value == pytest.approx(accuracy_score(targets.ravel(), found.ravel() > 0.5))


def test_classification__exclusive_labels__one_of_them() -> None:
    """Probabilities add up to 1, the most probable one is the answer."""
    generator = np.random.default_rng(1)
    logits, truth = generator.normal(size=(30, 3)), generator.integers(0, 3, 30)
    targets = np.eye(3, dtype=np.float32)[truth]
    task = Classification(("a", "b", "c"), exclusive=True)
    found = task.probabilities(torch.from_numpy(logits)).numpy()
    loss = task.loss(torch.from_numpy(logits), torch.from_numpy(targets))
    assert loss.item() == pytest.approx(log_loss(truth, found))
    measures = task.measure(list(found), list(targets), [str(number) for number in range(30)])
    assert measures["accuracy"].value == pytest.approx(accuracy_score(truth, found.argmax(1)))
    expected = roc_auc_score(truth, found, multi_class="ovr", average="macro")
    assert measures["auroc"].value == pytest.approx(expected)


def test_measure__maps__dice_over_images_and_classes() -> None:
    """An image without a class does not count for it."""
    task = Segmentation(("background", "x", "y"))
    reference = [np.array([0, 1, 1, 2]), np.array([0, 1, 0, 0])]
    found = [np.array([0, 1, 0, 2]), np.array([0, 0, 0, 1])]
    measures = task.measure(found, reference, ["a", "b"])
    assert measures["dice x"].value == pytest.approx((2 / 3 + 0) / 2)
    assert measures["dice y"].value == pytest.approx(1)
    assert measures["dice"].value == pytest.approx(((2 / 3 + 1) / 2 + 0) / 2)
