"""Grad-CAM: which places of a layer's feature maps speak for a class.

With feature maps A_k and the score y of a class (see ``scores``), a_k is the mean of dy/dA_k over space, and the map is
ReLU(sum of a_k A_k), resized to the input by linear interpolation. It is not normalised: its values are shares of the
score, as far as the network beyond the layer is linear.

Where an instance normalisation comes after the layer, as in nnU-Net's networks, dy/dA_k adds up to nothing over space
but for the borders, because what is the same everywhere is taken off again. The mean then says nothing. HiResCAM takes
none: its map is ReLU(sum of dy/dA_k A_k), place by place; where gradients are the same everywhere it is Grad-CAM's.

Layer norms of transformers do the same to each token by itself, against which no choice of the mean helps: see
``conserving``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from coarse2fine.errors import ConfigError
from coarse2fine.explain.conserving import conserving
from coarse2fine.explain.scores import Score, score_of

_MOST_NAMES = 5
Method = Literal["grad-cam", "hires-cam"]
"""See the module's docstring."""
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def grad_cam(
    network: nn.Module,
    inputs: torch.Tensor,
    layer: str,
    target: int | Score,
    *,
    mask: torch.Tensor | None = None,
    grid: Sequence[int] | None = None,
    method: Method = "grad-cam",
    conserve: bool = False,
) -> torch.Tensor:
    """The map of a class at a layer.

    The network runs in evaluation mode and is left as it was: weights, their gradients, and modes.

    Args:
        network: A classifier or a segmentation network; of several outputs (deep supervision) the first counts.
        inputs: Shape (n, channels, *space), two or three axes of space.
        layer: A name as ``network.named_modules()`` gives it. Its output is a feature map, shape (n, k, *size), or
            tokens of a transformer, shape (n, tokens, k).
        target: Number of the class, from 0, or the score itself. See ``scores``.
        mask: Of a segmentation network the voxels that are explained, shape of the output's space; None for those in
            which it finds the class.
        grid: How tokens lie, as (rows, columns) or (z, y, x); those before them, such as a class token, are left out.
            None finds it out, where patches have equal edges and there is at most one token before them.
        method: How gradients count.
        conserve: Whether they pass layer norms and attention as if these were linear, which maps of transformers need.
            Without, maps are those of the formula alone, as other libraries give them. See ``conserving``.

    Returns:
        Shape (n, *space), not negative.

    Raises:
        ConfigError: If there is no such layer or class, or the layer's output is no map, or has no part in the score.
    """
    score = score_of(target, mask) if isinstance(target, int) else target
    return layer_map(network, inputs, layer, score, grid=grid, method=method, conserve=conserve)[0]


def layer_map(
    network: nn.Module,
    inputs: torch.Tensor,
    layer: str,
    score: Score,
    *,
    grid: Sequence[int] | None = None,
    method: Method = "grad-cam",
    conserve: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A map, and the network's output, shape (n, classes, ...); arguments and errors as of ``grad_cam``."""
    module = find_layer(network, layer)
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> torch.Tensor:
        # Gradients need not go further back; what comes next may overwrite its input, but not what is kept.
        kept.append(_only_tensor(output, layer).detach().requires_grad_())
        return kept[-1].clone()

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_evaluating(network))
        if conserve:  # first, so that what is kept is what comes out of it
            stack.enter_context(conserving(network))
        stack.callback(module.register_forward_hook(keep).remove)
        outputs = network(inputs.detach().clone())
        outputs = outputs[0] if isinstance(outputs, tuple | list) else outputs
        features, gradients = _gradients(score(outputs), kept, layer)
    space = inputs.shape[2:]
    if features.ndim == 3 and len(space) > 1:
        features, gradients = (_as_grid(tokens, space, grid, layer) for tokens in (features, gradients))
    if features.ndim != inputs.ndim:
        raise ConfigError(
            f"layer {layer} gives {tuple(features.shape)} for an input of {tuple(inputs.shape)}, which is no map",
            "Name an earlier layer, before pooling.",
        )
    if method == "grad-cam":
        gradients = gradients.flatten(2).mean(2).view(*gradients.shape[:2], *[1] * len(space))
    found = F.relu((gradients * features).sum(1, keepdim=True))
    resized = F.interpolate(found, tuple(space), mode=_LINEAR[len(space)], align_corners=False)
    return resized[:, 0], outputs.detach()


def find_layer(network: nn.Module, layer: str) -> nn.Module:
    """A part of a network by its name.

    Raises:
        ConfigError: If there is none; it lists names that are like it.
    """
    names = dict(network.named_modules())
    names.pop("", None)
    if layer not in names:
        like = difflib.get_close_matches(layer, names, n=_MOST_NAMES, cutoff=0.3) or list(names)[:_MOST_NAMES]
        raise ConfigError(f"the network has no layer {layer!r}", f"Name one as it does: {', '.join(like)}.")
    return names[layer]


def _only_tensor(output: Any, layer: str) -> torch.Tensor:
    """The output of a layer, which must be one tensor of real numbers."""
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        what = "several tensors" if isinstance(output, tuple | list | dict) else "no real numbers"
        raise ConfigError(f"layer {layer} gives {what}, not one map", "Name one of its parts, or the layer after it.")
    return output


def _gradients(score: torch.Tensor, kept: Sequence[torch.Tensor], layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer gave last, and the gradient of the score by it."""
    if kept and score.requires_grad:
        (gradient,) = torch.autograd.grad(score.sum(), kept[-1], allow_unused=True)
        if gradient is not None:
            return kept[-1].detach(), gradient
    raise ConfigError(
        f"the score does not depend on layer {layer}" if kept else f"the network does not run its layer {layer}",
        "Name a layer that lies between the input and the network's first output.",
    )


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each part in the mode in which it was."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _as_grid(tokens: torch.Tensor, space: Sequence[int], grid: Sequence[int] | None, layer: str) -> torch.Tensor:
    """Tokens (n, tokens, k) as a map (n, k, *grid)."""
    count = tokens.shape[1]
    found = {tuple(grid)} if grid is not None else _grids(space, count)
    if len(found) != 1 or prod(size := next(iter(found))) > count:
        raise ConfigError(
            f"layer {layer} gives {count} tokens, which are no grid of patches of an input of {tuple(space)}"
            if grid is None
            else f"layer {layer} gives {count} tokens, fewer than a grid of {tuple(grid)} has",
            "Say how tokens lie: grid=(rows, columns), or (z, y, x), of the patches.",
        )
    patches = tokens[:, count - prod(size) :]
    return patches.transpose(1, 2).reshape(len(tokens), -1, *size)


def _grids(space: Sequence[int], count: int) -> set[tuple[int, ...]]:
    """Grids of patches with equal edges that have so many tokens, or one fewer."""
    grids = {tuple(size // edge for size in space) for edge in range(1, min(space) + 1)}
    return {size for size in grids if prod(size) in (count, count - 1)}
