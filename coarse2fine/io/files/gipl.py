"""GIPL files."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from coarse2fine.errors import VolumeError
from coarse2fine.io.files.fields import Header, damaged, shape_of
from coarse2fine.io.files.headers import PLAIN, Layout, check_spacing

_SIZE, _TYPE_AT, _SPACING_AT, _ORIGIN_AT, _MAGIC_AT = 256, 8, 10, 204, 252
_MAGIC = (719555000, 4026526128)
_TYPES = {1: "u1", 7: "i1", 8: "u1", 15: ">i2", 16: ">u2", 64: ">f4", 65: ">f8"}  # SimpleITK reads no others


def gipl_header(path: Path) -> Header:
    """What a GIPL file says of its voxels.

    Raises:
        VolumeError: If the header is damaged, or asks for what a volume cannot be.
    """
    with path.open("rb") as stream:
        head = stream.read(_SIZE)
    if len(head) < _SIZE or struct.unpack_from(">I", head, _MAGIC_AT)[0] not in _MAGIC:
        raise damaged(path, "it is not a GIPL file")
    *sizes, frames = struct.unpack_from(">4H", head)
    code = struct.unpack_from(">H", head, _TYPE_AT)[0]
    spacing = struct.unpack_from(">3f", head, _SPACING_AT)
    origin = struct.unpack_from(">3d", head, _ORIGIN_AT)
    shape = shape_of(path, (*sizes, max(frames, 1)))
    if code not in _TYPES:
        raise VolumeError(
            f"{path}: voxels are of GIPL's type {code}, which SimpleITK does not read", "Write them as type 15 (short)."
        )
    check_spacing(path, spacing)
    if not all(map(math.isfinite, origin)):
        raise VolumeError(f"{path}: the origin {origin} is not finite", "Correct the header.")
    vetted = bytearray(_SIZE)
    struct.pack_into(">4HH4f", vetted, 0, *sizes, 1, code, *spacing, 1.0)
    struct.pack_into(">4d", vetted, _ORIGIN_AT, *origin, 0.0)
    struct.pack_into(">I", vetted, _MAGIC_AT, _MAGIC[0])
    return Header(shape, Layout(path, np.dtype(_TYPES[code]), _SIZE, PLAIN), bytes(vetted))
