"""Units of length in the metadata of volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from coarse2fine.errors import VolumeError
from coarse2fine.io.volume import Spacing

NM_PER = {"nm": 1.0, "mm": 1e6}  # the two units of a Grid

_NANOMETRES = {
    1e-3: ("pm", "picometer", "picometre"),
    1e-1: ("\u00c5", "\u212b", "angstrom", "\u00e5ngstr\u00f6m"),
    1e0: ("nm", "nanometer", "nanometre"),
    1e3: ("um", "\u00b5m", "\u03bcm", "micron", "micrometer", "micrometre"),
    1e6: ("mm", "millimeter", "millimetre"),
    1e7: ("cm", "centimeter", "centimetre"),
    1e8: ("dm", "decimeter", "decimetre"),
    1e9: ("m", "meter", "metre"),
}
_FACTORS = {name: factor for factor, names in _NANOMETRES.items() for name in names}
_FINE = 1e3  # nm; a micrometre


def to_grid_unit(
    where: str, values: Sequence[float], units: Sequence[str | None], *others: Sequence[float]
) -> tuple[str, Spacing, list[Spacing]]:
    """Spacing in one of the two units of a Grid: "nm" if all units are micrometres or finer, "mm" otherwise.

    Args:
        where: The volume, for messages.
        values: Spacing (z, y, x).
        units: Unit per axis, as the metadata spell it.
        others: Further lengths (z, y, x) in the same units, such as an offset.

    Returns:
        The unit, the spacing, and the other lengths, (z, y, x) all.

    Raises:
        VolumeError: If a unit is missing or no unit of length, or the spacing is not positive.

    >>> to_grid_unit("a.zarr", (0.04, 4, 40), ("micrometer", "nm", "angstrom"), (1, 1, 1))
    ('nm', (40.0, 4.0, 4.0), [(1000.0, 1.0, 0.1)])
    """
    factors = [nanometres(where, unit) for unit in units]
    unit = "nm" if max(factors) <= _FINE else "mm"
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise VolumeError(
            f"{where}: the spacing {tuple(values)} (z, y, x) is not positive",
            "Correct its metadata, or give the true spacing and unit (--spacing, --unit).",
        )
    if not all(math.isfinite(value) for other in others for value in other):
        raise VolumeError(f"{where}: its offset is not a finite number", "Correct its metadata.")
    spacing, *rest = (_scaled(lengths, [factor / NM_PER[unit] for factor in factors]) for lengths in (values, *others))
    return unit, spacing, rest


def nanometres(where: str, unit: str | None) -> float:
    """How many nanometres a unit has.

    Raises:
        VolumeError: If it is missing, or no unit of length.
    """
    if not unit:
        raise VolumeError(
            f"{where} does not say in which unit its spacing is",
            "Give it (--unit nm, um or mm), or write it into the metadata.",
        )
    name = unit.strip()
    factor = _FACTORS.get(name)
    if factor is None and len(name) > 2:  # case matters in abbreviations (Mm is not mm), not in words
        factor = _FACTORS.get(name.lower()) or _FACTORS.get(name.lower().removesuffix("s"))
    if factor is None:
        raise VolumeError(
            f"{where}: {unit!r} is no unit of length that is known here",
            "Give the true one (--unit): nm, um or mm.",
        )
    return factor


def _scaled(lengths: Sequence[float], factors: Sequence[float]) -> Spacing:
    # Twelve digits: 0.04 micrometres are 40 nm, not 40.00000000000001.
    z, y, x = (float(f"{length * factor:.12g}") for length, factor in zip(lengths, factors, strict=True))
    return z, y, x
