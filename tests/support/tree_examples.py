"""Small trees for the tests of choosing."""

from __future__ import annotations

from assignnet import Roi
from canvas import Box, Triple

SLOT = (8, 8, 8)
VOLUME = (64, 64, 64)


def roi(start: Triple, shape: Triple, mass: float = 1.0) -> Roi:
    return Roi(Box.of(start, shape), 0.9, mass)


WIDE = roi((0, 0, 0), (16, 16, 16), mass=100.0)
PARTS = (roi((0, 0, 0), SLOT, mass=50.0), roi((8, 8, 8), SLOT, mass=40.0))
LONE = roi((40, 40, 40), (4, 4, 4), mass=10.0)
