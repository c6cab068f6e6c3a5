"""What training here does otherwise than nnU-Net's trainer; whole trainings are in test_train_models.py."""

from __future__ import annotations

import torch
from conftest import import_benchmark

trainer = import_benchmark("training.trainer")


def test_skip_broken_step__gradients__only_finite_ones_change_weights() -> None:
    """A gradient that is not a number leaves all weights as they were; the next step goes on."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    optimizer.register_step_pre_hook(trainer.skip_broken_step)
    for broken in (float("nan"), float("inf"), 1.0):
        for weight in weights:
            weight.grad = torch.ones(2)
        weights[0].grad = torch.tensor([1.0, broken])
        optimizer.step()
        expected = torch.full((2,), 0.9 if broken == 1 else 1.0)
        assert all(torch.equal(weight, expected) for weight in weights)
