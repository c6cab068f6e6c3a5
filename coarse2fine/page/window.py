"""From intensities to grey: which window pictures are drawn with, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LUNG, _BONE = -500.0, 250.0  # medians of surroundings, in HU, below and above which these windows are taken


@dataclass(frozen=True, slots=True)
class Window:
    """A range of intensities.

    Attributes:
        low, high: What is drawn black and white.
        words: What pictures say of it.
    """

    low: float
    high: float
    words: str

    def grey(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Intensities as grey values; what is no number is black."""
        span = max(self.high - self.low, 1e-9)
        shares = (np.nan_to_num(np.asarray(values, np.float32), nan=self.low) - self.low) / span
        return np.asarray(np.clip(shares, 0, 1) * 255 + 0.5, np.uint8)


LUNG = Window(-1350, 150, "lung window, -1350 to 150 HU")
SOFT_TISSUE = Window(-160, 240, "soft tissue window, -160 to 240 HU")
BONE = Window(-500, 1300, "bone window, -500 to 1300 HU")


def pick_window(shown: NDArray[Any], near: NDArray[Any], *, ct: bool) -> Window:
    """The window to draw with.

    Args:
        shown: Intensities of what is drawn.
        near: Those around what was found; of a CT their median decides between lung, soft tissue and bone.
        ct: Whether they are Hounsfield units.
    """
    if ct and near.size:
        middle = float(np.median(near))
        return LUNG if middle < _LUNG else BONE if middle > _BONE else SOFT_TISSUE
    values = shown[np.isfinite(shown) & (shown != 0)]
    if not values.size:
        return Window(0, 1, "grey values 0 to 1")
    low, high = (float(value) for value in np.percentile(values, (1, 99.5)))
    return Window(low, high, f"grey values {_number(low)} to {_number(high)}")


def _number(value: float) -> str:
    return f"{value:.4g}"
