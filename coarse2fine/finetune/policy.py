"""Random augmentation with one strength for all distortions, chosen by the strings that the field uses.

After Cubuk and others (RandAugment), 2020; strings as those of the library timm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from coarse2fine.errors import ConfigError
from coarse2fine.finetune.distort import DISTORTIONS, Strength

_MOST = 10.0
_CHANCE = 0.5
"""Of each distortion that was chosen; else nothing is done."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How training images are changed.

    Attributes:
        magnitude: How much, from 0 to 10.
        spread: Standard deviation of that.
        count: Distortions that are chosen for each image.
        increasing: Whether more magnitude is more distortion, for all kinds.
        mirror: Axes of images, 0 the first after the channels, along each of which half of them are mirrored.
    """

    magnitude: float = 0.0
    spread: float = 0.0
    count: int = 0
    increasing: bool = True
    mirror: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str, mirror: tuple[int, ...] = ()) -> Self:
        """The policy that a string such as ``rand-m6-mstd0.5-inc1`` means; ``none`` means no distortion.

        Raises:
            ConfigError: If it has a part that is not known.

        >>> Policy.parse("rand-m6-mstd0.5-inc1")
        Policy(magnitude=6.0, spread=0.5, count=2, increasing=True, mirror=())
        """
        if text == "none":
            return cls(mirror=mirror)
        kind, *parts = text.split("-")
        found = {"m": 10.0, "mstd": 0.0, "n": 2.0, "inc": 0.0}
        for part in parts:
            match = re.fullmatch(r"(mstd|m|n|inc)(\d+(?:\.\d+)?)", part)
            if not match:
                raise _unknown(text, part)
            found[match[1]] = float(match[2])
        if kind != "rand":
            raise _unknown(text, kind)
        if found["m"] > _MOST:
            raise _unknown(text, f"m{found['m']:g}")
        return cls(found["m"], found["mstd"], int(found["n"]), bool(found["inc"]), mirror)

    def apply(
        self, images: torch.Tensor, labels: torch.Tensor | None, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Change each image in its own way.

        Args:
            images: Shape (n, channels, *image).
            labels: Shape (n, *image), or None if labels are of whole images.
            generator: Source of all randomness.
        """
        if not (self.count or self.mirror):
            return images, labels
        pairs = [
            self._one(image, None if labels is None else labels[number], generator)
            for number, image in enumerate(images)
        ]
        moved = [one for _, one in pairs if one is not None]
        return torch.stack([image for image, _ in pairs]), torch.stack(moved) if moved else None

    def _one(
        self, image: torch.Tensor, labels: torch.Tensor | None, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        turned = [axis - image.ndim + 1 for axis in self.mirror if generator.random() < 0.5]
        pair = (image.flip(turned), None if labels is None else labels.flip(turned)) if turned else (image, labels)
        for choice in generator.integers(len(DISTORTIONS), size=self.count):
            much = float(np.clip(generator.normal(self.magnitude, self.spread), 0, _MOST)) / _MOST
            sign = 1 if generator.random() < 0.5 else -1
            if generator.random() < _CHANCE:
                pair = DISTORTIONS[choice](pair, Strength(much, sign, not self.increasing))
        return pair


PLAIN = Policy()
"""Images as they are."""


def _unknown(text: str, part: str) -> ConfigError:
    return ConfigError(
        f"{part!r} in the augmentation {text!r} is unknown",
        "Write none, or rand and any of m (up to 10), mstd, n and inc with numbers: --augment rand-m6-mstd0.5-inc1.",
    )
