"""One way of hiding blocks, with its settings: what users choose by ``--mask``, ``--ratio`` and ``--centre``."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import numpy as np

from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.blocks import Blocks, Mask
from coarse2fine.pretrain.masks import block_centres, block_mask, centre_weights, grid_mask, random_mask, visible_count

Kind = Literal["random", "block", "grid"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RATIO = 0.75


@dataclass(frozen=True, slots=True)
class Masking:
    """How blocks of a patch are chosen to be hidden.

    Attributes:
        blocks: Of the patch.
        kind: Each block by itself, boxes of blocks, or all but every second one along every axis.
        ratio: Share that is hidden; None: 0.75, or what a grid hides.
        sigma: Blocks near the centre are hidden more often, see ``centre_weights``; infinite: all alike.

    Raises:
        ConfigError: If nothing would be hidden, nothing visible, or settings contradict each other.
    """

    blocks: Blocks
    kind: Kind = "random"
    ratio: float | None = None
    sigma: float = inf

    def __post_init__(self) -> None:
        ratio = RATIO if self.ratio is None else self.ratio
        if not 0 < ratio < 1:
            raise ConfigError(f"the mask ratio is {ratio:g}", "It must lie between 0 and 1: --ratio 0.75.")
        if not self.sigma > 0:
            raise ConfigError(f"--centre is {self.sigma:g}", "It must be above 0: --centre 0.5.")
        if self.sigma < inf and self.kind != "random":
            raise ConfigError(
                f"--centre has no meaning for masks of the kind {self.kind}", "Leave it out, or use --mask random."
            )
        if self.kind == "grid" and self.ratio is not None:
            raise ConfigError(
                f"--ratio {self.ratio:g} has no meaning for grids, which leave every second block visible",
                "Leave it out, or use --mask random.",
            )
        count = self.blocks.count
        if count == 1:
            raise ConfigError(
                "the patch is a single block, of which nothing would stay visible or nothing be hidden",
                "Use smaller ones: --block (--patch with --network vit) of at most half of the longest edge.",
            )
        if self.kind != "grid" and visible_count(count, ratio) == 0:
            most = np.floor((count - 1) / count * 1000) / 1000
            raise ConfigError(
                f"the mask ratio {ratio:g} leaves none of {count} blocks visible",
                f"Use --ratio {most:g} or less, or smaller blocks (--block, or --patch with --network vit).",
            )

    def draw(self, generator: np.random.Generator) -> Mask:
        """Voxels to hide in one patch; shape of the patch."""
        return self.blocks.to_voxels(self.draw_blocks(generator))

    def draw_blocks(self, generator: np.random.Generator) -> Mask:
        """Blocks to hide; their shape."""
        shape = self.blocks.shape
        if self.kind == "grid":
            return grid_mask(shape, generator)
        hidden = self.blocks.count - visible_count(self.blocks.count, RATIO if self.ratio is None else self.ratio)
        if self.kind == "block":
            return block_mask(shape, hidden, generator)
        return random_mask(shape, hidden, generator, centre_weights(block_centres(shape), self.sigma))
