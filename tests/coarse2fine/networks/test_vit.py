"""The vision transformer, against brute force and PyTorch's own layers."""

from __future__ import annotations

from itertools import product
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from coarse2fine.errors import ConfigError
from coarse2fine.networks.vit import Block, ViT, ViTShape, images_of, new_vit, patches_of, sine_positions

M = TypeVar("M", bound=nn.Module)
SHAPES = [
    ViTShape(2, (8, 12), (4, 4), width=16, depth=2, heads=2),
    ViTShape(1, (4, 8, 6), (2, 4, 3), width=24, depth=2, heads=4),
]


def images(shape: ViTShape, count: int = 2) -> torch.Tensor:
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.normal(size=(count, shape.channels, *shape.image)).astype(np.float32))


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_patches_of__any_dimension__are_the_voxels_of_each_patch(shape: ViTShape) -> None:
    """By brute force: patches with the last axis first, in each its voxels likewise, channels last."""
    batch = images(shape)
    rows = patches_of(batch, shape.patch)
    wanted = []
    for image in batch.numpy():
        patches = []
        for corner in product(*(range(0, size, edge) for size, edge in zip(shape.image, shape.patch, strict=True))):
            part = image[:, *(slice(at, at + edge) for at, edge in zip(corner, shape.patch, strict=True))]
            patches.append(np.moveaxis(part, 0, -1).ravel())
        wanted.append(patches)
    assert np.array_equal(rows.numpy(), wanted)


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=2, max_size=3),
    st.integers(1, 3),
)
def test_images_of__rows_of_patches__are_the_images_again(
    count: int, axes: list[tuple[int, int]], channels: int
) -> None:
    """The inverse, in 2D and 3D, with patches that are no cubes."""
    grid, patch = zip(*axes, strict=True)
    shape = (count, channels, *(size * edge for size, edge in axes))
    batch = torch.arange(float(np.prod(shape))).reshape(shape)
    assert torch.equal(images_of(patches_of(batch, patch), grid, patch), batch)


@pytest.mark.parametrize(
    ("shape", "image", "mode"), [(SHAPES[0], (16, 20), "bicubic"), (SHAPES[1], (6, 4, 9), "trilinear")]
)
def test_seeing__images_of_another_size__has_positions_as_pytorch_interpolates_them(
    shape: ViTShape, image: tuple[int, ...], mode: str
) -> None:
    """Not those that the new grid would have; weights and class token stay, and back again is as before."""
    first, other = new_vit(shape, 0), new_vit(shape.seeing(image), 0)
    table = first.positions.reshape(*shape.grid, shape.width).movedim(-1, 0)[None]
    wanted = F.interpolate(table, other.shape.grid, mode=mode, align_corners=False)[0].flatten(1).T
    assert torch.equal(other.positions, wanted)
    assert not torch.allclose(other.positions, sine_positions(other.shape.grid, shape.width), atol=0.1)
    other.load_state_dict(first.state_dict())
    tokens = other.embed(images(other.shape))
    assert torch.equal(tokens[:, :1], first.class_token.expand(2, -1, -1))
    assert torch.allclose(
        tokens[:, 1:], other.project(patches_of(images(other.shape), shape.patch)) + wanted, atol=1e-6
    )
    assert other.shape.seeing(shape.image) == shape
    with pytest.raises(ConfigError, match="has learned from"):
        shape.seeing((*image, 4))


def twin(block: Block, width: int, heads: int) -> nn.TransformerEncoderLayer:
    """PyTorch's layer with the same weights."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    pairs: list[tuple[Any, Any]] = [
        (layer.self_attn.out_proj, block.out),
        (layer.linear1, block.mlp[0]),
        (layer.linear2, block.mlp[2]),
        (layer.norm1, block.norm1),
        (layer.norm2, block.norm2),
    ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    layer.self_attn.in_proj_weight.data.copy_(block.qkv.weight)
    layer.self_attn.in_proj_bias.data.copy_(block.qkv.bias)
    return layer.eval()


def shaken(module: M) -> M:
    """With weights among which no bias is 0 and no norm does nothing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.add_(torch.randn_like(tensor), alpha=0.2)
    return module


def test_block__any_tokens__equals_pytorchs_layer() -> None:
    """Norm first, exact GELU; outputs and gradients."""
    block = shaken(Block(24, 4)).eval()
    layer = twin(block, 24, 4)
    ours, theirs = (torch.randn(2, 5, 24, generator=torch.manual_seed(1)).requires_grad_() for _ in range(2))
    seen, wanted = block(ours), layer(theirs)
    assert torch.allclose(seen, wanted, atol=1e-5)
    seen.square().sum().backward()
    wanted.square().sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-3, rtol=1e-4)


def test_tokens__whole_network__equals_one_of_pytorchs_layers() -> None:
    """Projection, positions, class token, blocks and last norm."""
    shape = SHAPES[0]
    network = shaken(ViT(shape)).eval()
    batch = images(shape)
    rows = torch.nn.functional.linear(patches_of(batch, shape.patch), network.project.weight, network.project.bias)
    tokens = torch.cat([network.class_token.repeat(2, 1, 1), rows + network.positions], 1)
    for block in network.blocks:
        assert isinstance(block, Block)
        tokens = twin(block, shape.width, shape.heads)(tokens)
    wanted = nn.functional.layer_norm(tokens, (shape.width,), network.norm.weight, network.norm.bias, 1e-6)
    assert torch.allclose(network(batch), wanted, atol=1e-5)
    grid = network.to_grid(network(batch))
    assert grid.shape == (2, 16, 2, 3)
    assert torch.allclose(grid[:, :, 1, 2], wanted[:, 1 + 1 * 3 + 2], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_tokens__some_patches_only__do_not_depend_on_the_others(shape: ViTShape) -> None:
    """Whatever stands there; and all in their order give what all give."""
    network = new_vit(shape, 0).eval()
    batch, count = images(shape), int(np.prod(shape.grid))
    keep = torch.tensor([[0, 3], [4, 1]])
    rows = patches_of(batch, shape.patch)
    others = torch.ones_like(rows).scatter(1, keep[..., None].expand(-1, -1, rows.shape[2]), 0) * 9
    seen = network.tokens(batch, keep)
    assert seen.shape == (2, 3, shape.width)
    assert torch.allclose(network.tokens(images_of(rows + others, shape.grid, shape.patch), keep), seen, atol=1e-5)
    every = torch.arange(count).expand(2, -1)
    assert torch.allclose(network.tokens(batch, every), network.tokens(batch), atol=1e-5)
    swapped = network.tokens(batch, keep.flip(1))
    assert torch.allclose(swapped[:, 1:].flip(1), seen[:, 1:], atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)])
def test_sine_positions__any_grid__sines_and_cosines_of_each_axis(grid: tuple[int, ...]) -> None:
    """By the formula, place by place; no two places are alike."""
    width = 24
    share = width // len(grid)
    waves = sine_positions(grid, width).numpy()
    for at, place in enumerate(product(*map(range, grid))):
        wanted: list[float] = []
        for position in place:
            angles = [position / 10_000 ** (2 * i / share) for i in range(share // 2)]
            wanted += [*np.sin(angles), *np.cos(angles)]
        assert np.allclose(waves[at], wanted, atol=1e-6)
    assert len(np.unique(waves, axis=0)) == np.prod(grid)


def seen_by(block: Block, tokens: torch.Tensor) -> torch.Tensor:
    """What a block's attention gives to its last layer."""
    seen: list[torch.Tensor] = []
    hook = block.out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    block(tokens)
    hook.remove()
    return seen[0]


def test_drop_path__many_images__keeps_the_mean_while_training_only() -> None:
    """What is added is left out or doubled at a chance of a half; in evaluation nothing changes."""
    block, plain = shaken(Block(8, 2, 0.5)), Block(8, 2)
    plain.load_state_dict(block.state_dict())
    tokens = torch.randn(1, 3, 8, generator=torch.manual_seed(3))
    assert torch.allclose(block.eval()(tokens), plain.eval()(tokens), atol=1e-6)
    torch.manual_seed(0)
    with torch.no_grad():
        many = block.train()(tokens.repeat(4000, 1, 1))
    kinds, counts = torch.unique((many * 1e3).round(), dim=0, return_counts=True)
    assert len(kinds) == 4  # each of both parts is there or not
    assert (counts / 4000 - 0.25).abs().max() < 0.03
    nothing = (many - tokens).abs().amax((1, 2)) < 1e-6
    assert 0.22 < nothing.float().mean() < 0.28
    once = tokens + 2 * (plain.out(seen_by(plain, tokens)))
    assert ((many - once).abs().amax((1, 2)) < 1e-4).float().mean() == pytest.approx(0.25, abs=0.03)


def test_drop_path__of_a_network__grows_from_block_to_block() -> None:
    """From nothing to what was asked for, linearly."""
    network = ViT(ViTShape(1, (8, 8), (4, 4), 16, 5, 2), drop_path=0.2)
    assert [block.drop_path for block in network.blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_new_vit__seed__fixes_the_weights_and_nothing_else() -> None:
    """PyTorch's own random numbers go on as if nothing had happened."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (new_vit(SHAPES[0], seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.project.weight, again.project.weight)
    assert not torch.equal(first.project.weight, other.project.weight)
    bound = np.sqrt(6 / sum(first.project.weight.shape))
    assert 0.9 * bound < first.project.weight.abs().max() <= bound
    assert not any(block.qkv.bias.any() for block in first.blocks)


@pytest.mark.parametrize(
    ("wrong", "says", "remedy", "right"),
    [
        ({"image": (10, 8)}, "images of 10 x 8 are not divisible into patches of 4 x 4", "--patch", {"patch": (5, 4)}),
        ({"patch": (4, 4, 4)}, "not divisible into patches of 4 x 4 x 4", "--patch", {"patch": (4, 4)}),
        ({"width": 18}, "a width of 18 is not divisible by 4 heads and 4", "a multiple of 4 ", {"width": 16}),
        ({"heads": 3}, "a width of 16 is not divisible by 3 heads", "a multiple of 12 ", {"width": 24}),
        ({"patch": (0, 4)}, "patch is 0", "from 1 to", {"patch": (1, 4)}),
        ({"image": ()}, "size is 0", "from 1 to", {"image": (8, 8)}),
        ({"depth": 0}, "depth is 0", "from 1 to 1000", {"depth": 1}),
        ({"heads": -1}, "heads is -1", "from 1 to", {"heads": 1}),
        ({"image": (2048, 2048)}, "have 262144 patches of 4 x 4", "larger ones", {"patch": (16, 16)}),
    ],
)
def test_vit_shape__what_cannot_be__is_refused_and_the_remedy_works(
    wrong: dict[str, Any], says: str, remedy: str, right: dict[str, Any]
) -> None:
    """Naming what does not fit."""
    usual: dict[str, Any] = {"channels": 1, "image": (8, 8), "patch": (4, 4), "width": 16, "depth": 1, "heads": 4}
    with pytest.raises(ConfigError, match=says) as raised:
        ViTShape(**usual | wrong)
    assert remedy in raised.value.remedy
    ViTShape(**usual | wrong | right)
