"""Masked autoencoding by a transformer that sees visible patches only, against a computation with all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coarse2fine.errors import ConfigError
from coarse2fine.networks.vit import Block, ViT, ViTShape, images_of, new_vit, patches_of
from coarse2fine.pretrain.loop import pretrain
from coarse2fine.pretrain.mae_tokens import Decoder, DecoderShape, TokenAutoencoding, patch_blocks
from coarse2fine.pretrain.masking import Masking
from coarse2fine.pretrain.methods import Task, method_of
from coarse2fine.pretrain.objective import Method
from coarse2fine.pretrain.picture_crops import PictureCrops
from coarse2fine.pretrain.pictures import Intensities
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.state import Done

FLAT = ViTShape(2, (16, 24), (4, 4), width=24, depth=2, heads=2)
SOLID = ViTShape(1, (8, 12, 8), (2, 4, 4), width=24, depth=2, heads=2)
MASKS: list[dict[str, Any]] = [
    {},
    {"ratio": 0.9},
    {"kind": "block", "ratio": 0.5},
    {"kind": "grid"},
    {"sigma": 0.4},
]


def objective(shape: ViTShape, masking: dict[str, Any] | None = None, **options: bool) -> TokenAutoencoding:
    torch.manual_seed(0)
    decoder = Decoder(shape, DecoderShape.of(shape, width=12, depth=2, heads=2))
    return TokenAutoencoding(Masking(patch_blocks(shape), **masking or {}), shape, decoder, **options)


def images(shape: ViTShape) -> torch.Tensor:
    generator = np.random.default_rng(1)
    return torch.from_numpy(generator.normal(2, 3, (3, shape.channels, *shape.image)).astype(np.float32))


def masked_block(block: Block, tokens: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """A block over all tokens, of which only visible ones are attended to."""
    width, heads = tokens.shape[2], block.heads
    query, key, value = block.qkv(block.norm1(tokens)).split(width, 2)
    seen = torch.zeros_like(tokens)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / (width / heads) ** 0.5
        weights = scores.masked_fill(~visible[:, None], -inf).softmax(-1)
        seen[..., part] = weights @ value[..., part]
    tokens = tokens + block.out(seen)
    return tokens + block.mlp(block.norm2(tokens))


def by_brute_force(mae: TokenAutoencoding, network: ViT, batch: torch.Tensor, hidden: torch.Tensor) -> float:
    """All tokens go through the encoder with a mask; errors are summed up patch by patch."""
    visible = torch.cat([torch.ones(len(batch), 1, dtype=torch.bool), ~hidden], 1)
    tokens = network.project(patches_of(batch, mae.shape.patch)) + network.positions
    tokens = torch.cat([network.class_token.expand(len(batch), -1, -1), tokens], 1)
    for block in network.blocks:
        assert isinstance(block, Block)
        tokens = masked_block(block, tokens, visible)
    inside = mae.decoder.embed(network.norm(tokens))
    inside[:, 1:] = torch.where(hidden[..., None], mae.decoder.mask_token, inside[:, 1:]) + mae.decoder.positions
    for block in mae.decoder.blocks:
        inside = block(inside)
    painted = mae.decoder.paint(mae.decoder.norm(inside))[:, 1:].detach().numpy()
    errors = []
    for image, holes, rows in zip(batch, hidden, painted, strict=True):
        for patch, is_hidden, row in zip(patches_of(image[None], mae.shape.patch)[0], holes, rows, strict=True):
            if not (is_hidden or mae.everywhere):
                continue
            target = patch.numpy().astype(float).reshape(-1, mae.shape.channels)
            if mae.normalised:
                target = (target - target.mean(0)) / np.sqrt(target.var(0) + 1e-6)
            errors.append(np.square(row - target.ravel()).mean())
    return float(np.mean(errors))


@pytest.mark.parametrize("shape", [FLAT, SOLID], ids=["2d", "3d"])
@pytest.mark.parametrize("masking", MASKS, ids=str)
def test_loss__any_mask__equals_that_of_all_tokens_with_a_mask(shape: ViTShape, masking: dict[str, Any]) -> None:
    """With pixels or normalised ones as targets, over hidden patches or all."""
    network, batch = new_vit(shape, 3).eval(), images(shape)
    for options in ({}, {"normalised": True}, {"everywhere": True}):
        mae = objective(shape, masking, **options)
        views = mae.views({"images": batch}, np.random.default_rng(2))
        with torch.no_grad():
            loss = float(mae.loss(network, views))
            assert loss == pytest.approx(by_brute_force(mae, network, batch, views["hidden"]), rel=1e-4)


@pytest.mark.parametrize(
    ("masking", "share"), [({}, 0.75), ({"ratio": 0.9}, 22 / 24), ({"kind": "grid"}, 0.75), ({"sigma": 0.4}, 0.75)]
)
def test_views__any_mask__hides_exactly_its_share_of_every_image(masking: dict[str, Any], share: float) -> None:
    """Of 24 patches; visible ones are those that are not hidden, and masks of images differ but for grids."""
    views = objective(FLAT, masking).views({"images": images(FLAT)}, np.random.default_rng(0))
    assert views["hidden"].float().mean(1).tolist() == pytest.approx([share] * 3)
    for keep, hidden in zip(views["keep"], views["hidden"], strict=True):
        assert sorted(keep.tolist()) == (~hidden).nonzero()[:, 0].tolist()
    assert torch.equal(views["hidden"][0], views["hidden"][1]) == (masking.get("kind") == "grid")


def test_views__grid_of_an_odd_number_of_patches__is_one_for_the_batch() -> None:
    """So that all images have as many visible ones."""
    shape = ViTShape(1, (12, 12), (4, 4), 12, 1, 1)
    mae = objective(shape, {"kind": "grid"})
    counts = set()
    for seed in range(12):
        views = mae.views({"images": torch.zeros(4, 1, 12, 12)}, np.random.default_rng(seed))
        counts.add(views["keep"].shape[1])
    assert counts == {1, 2, 4}


@pytest.mark.parametrize("shape", [FLAT, SOLID], ids=["2d", "3d"])
def test_loss__other_pixels_where_nothing_is_visible__reach_no_layer(shape: ViTShape) -> None:
    """The encoder's gradient is the same whatever is hidden, if the target stays."""
    network, batch, mae = new_vit(shape, 0), images(shape), objective(shape)
    views = dict(mae.views({"images": batch}, np.random.default_rng(0)))
    rows = patches_of(batch, shape.patch)
    rows[views["hidden"]] = 100.0
    other = views | {"images": images_of(rows, shape.grid, shape.patch)}
    assert not torch.equal(other["images"], batch)
    first = torch.autograd.grad(mae.loss(network, views), network.project.weight)[0]
    second = torch.autograd.grad(mae.loss(network, other), network.project.weight)[0]
    assert first.abs().max() > 0
    assert torch.allclose(first, second, atol=1e-6)


@pytest.mark.parametrize(
    ("encoder", "wanted"),
    [
        (ViTShape(3, (224, 224), (16, 16), 768, 12, 12), DecoderShape(512, 8, 16)),
        (ViTShape(1, (224, 224), (16, 16), 384, 12, 6), DecoderShape(512, 2, 16)),
        (ViTShape(1, (64, 64), (8, 8), 192, 6, 3), DecoderShape(128, 2, 4)),
        (ViTShape(1, (64, 64, 64), (8, 8, 8), 384, 6, 6), DecoderShape(480, 2, 15)),
        (ViTShape(1, (64, 64), (8, 8), 16, 6, 2), DecoderShape(32, 2, 1)),
    ],
)
def test_decoder_shape__any_encoder__is_what_the_field_uses(encoder: ViTShape, wanted: DecoderShape) -> None:
    """512 x 8 of ViT-B and 512 x 2 of ViT-S, and less of smaller ones."""
    assert DecoderShape.of(encoder) == wanted


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"mae.width": "30"}, "a decoder 30 wide is not divisible by 1 heads and 4"),
        ({"mae.width": "32", "mae.heads": "3"}, "32 wide is not divisible by 3 heads and 4"),
        ({"mae.depth": "0"}, "a decoder has 0 blocks"),
        ({"mae.heads": "-1"}, "is not divisible by -1 heads"),
        ({"mae.depth": "two"}, "--set mae.depth='two' cannot be"),
    ],
)
def test_method_of__decoder_that_cannot_be__is_refused(own: dict[str, str], says: str) -> None:
    """A width that the message names will do."""
    network = new_vit(FLAT, 0)
    with pytest.raises(ConfigError, match=says):
        method_of(Task(network, FLAT.image, Settings(Schedule(1, 1), own=own)))
    method_of(Task(network, FLAT.image, Settings(Schedule(1, 1), own={"mae.width": "36", "mae.heads": "3"})))


def test_method_of__decoder_for_nnunets_network__has_no_meaning() -> None:
    """It has one of its own; without the option it is taken."""
    settings = Settings(Schedule(1, 1), block=4, own={"mae.depth": "2"})
    with pytest.raises(ConfigError, match="nnU-Net's networks have one of their own"):
        method_of(Task(nn.Identity(), (8, 8), settings))
    method_of(Task(nn.Identity(), (8, 8), Settings(Schedule(1, 1), block=4)))


def test_method_of__few_patches__ratio_that_leaves_none_is_refused() -> None:
    """And the ratio that the message names leaves one."""
    network = new_vit(ViTShape(1, (8, 8), (4, 4), 12, 1, 1), 0)
    with pytest.raises(ConfigError, match="leaves none of 4 blocks visible") as raised:
        method_of(Task(network, (8, 8), Settings(Schedule(1, 1), ratio=0.9)))
    assert "--ratio 0.75 or less" in raised.value.remedy
    method = method_of(Task(network, (8, 8), Settings(Schedule(1, 1), ratio=0.75)))
    views = method.objectives["mae"].views({"images": torch.zeros(1, 1, 8, 8)}, np.random.default_rng(0))
    assert views["keep"].shape == (1, 1)


def test_loss__few_steps_of_the_usual_schedule__falls() -> None:
    """Of images of one colour each, the hidden part is soon painted like the visible one."""
    shape = ViTShape(1, (16, 16), (4, 4), 24, 2, 2)
    network, mae = new_vit(shape, 0), objective(shape)
    schedule = Schedule.of_transformers(50, 16, base_rate=0.3)
    optimizer = schedule.make_optimizer([{"params": [*network.parameters(), *mae.heads.parameters()]}])
    losses = []
    for step in range(schedule.steps):
        generator = np.random.default_rng(step)
        colours = torch.from_numpy(generator.normal(size=(16, 1, 1, 1)).astype(np.float32))
        loss = mae.loss(network, mae.views({"images": colours.expand(-1, 1, 16, 16)}, generator))
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.4  # of a variance of 1


def test_of_transformers__any_batch__is_the_schedule_of_the_field() -> None:
    """AdamW with a rate in proportion to the batch, that rises for a tenth and falls as half a cosine."""
    schedule = Schedule.of_transformers(400, 64)
    assert schedule.rate == pytest.approx(1.5e-4 / 4)
    assert schedule.rate_at(20, 0) == pytest.approx(schedule.rate / 2)
    assert schedule.rate_at(40, 0) == pytest.approx(schedule.rate)
    assert schedule.rate_at(220, 0) == pytest.approx(schedule.rate / 2)
    assert schedule.rate_at(400, 0) == pytest.approx(0)
    optimizer = schedule.make_optimizer([{"params": list(nn.Linear(2, 2).parameters())}])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(group["weight_decay"], group["betas"]) for group in optimizer.param_groups] == [
        (0.05, (0.9, 0.95)),
        (0.0, (0.9, 0.95)),
    ]


def test_pretrain__transformer_that_was_cut_off__goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AdamW's state, that of the decoder and dropped paths."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    shape = ViTShape(1, (16, 16), (4, 4), 24, 2, 2)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 1, 16, 16)).astype(np.uint8)
    source = PictureCrops(pixels, Intensities.of(pixels))

    def train(folder: Path, told: Callable[[Done], None] = lambda done: None) -> ViT:
        folder.mkdir(exist_ok=True)
        network = new_vit(shape, 0, drop_path=0.5)
        schedule = Schedule.of_transformers(6, 4, base_rate=0.3, piece=2)
        pretrain(network, Method({"mae": objective(shape)}), source, schedule, folder, told)
        return network

    def stop(done: Done) -> None:
        if done.step == 4:
            raise InterruptedError

    whole = train(tmp_path / "whole").state_dict()
    with pytest.raises(InterruptedError):
        train(tmp_path / "cut", stop)
    rest = train(tmp_path / "cut").state_dict()
    assert all(torch.allclose(rest[name], tensor, rtol=1e-4, atol=1e-6) for name, tensor in whole.items())
