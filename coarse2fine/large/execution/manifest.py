"""What tells one run from another, and in what two runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

_WIDTH = 60  # characters of a value in such a list


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run is; two runs may share a work folder only if these are equal. All values can be written as JSON.

    Attributes:
        config: All settings.
        volume: Identity of the input volume.
        models: Fingerprints of the models by role.
        version: Version of this package.
        layout: Lattice of blocks, region and output.
    """

    config: Mapping[str, Any]
    volume: Mapping[str, Any]
    models: Mapping[str, Any]
    version: str
    layout: Mapping[str, Any]


def manifest_differences(old: Manifest, new: Manifest) -> list[str]:
    """What differs between two runs, one line per value.

    >>> base = Manifest({"rois": {"threshold": 0.1}}, {}, {}, "1.0", {"block": (64, 64, 64)})
    >>> manifest_differences(base, Manifest({"rois": {"threshold": 0.3}}, {}, {}, "1.0", {"block": [64, 64, 32]}))
    ['config.rois.threshold: 0.1 before, 0.3 now', 'layout.block[2]: 64 before, 32 now']
    """
    before, now = plain(old), plain(new)
    return [line for name in before for line in _differences(name, before[name], now[name])]


def plain(manifest: Manifest) -> dict[str, Any]:
    """A manifest as it comes back from a file: with lists for tuples."""
    values = {field.name: getattr(manifest, field.name) for field in fields(manifest)}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=_as_dict))
    return plain


def _as_dict(value: object) -> dict[Any, Any]:
    """Mappings that are no dictionaries, for JSON."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a manifest holds what can be written as JSON, not {type(value).__name__}")


_ABSENT = object()


def _differences(name: str, old: Any, new: Any) -> Iterator[str]:
    """Lines for all leaves below ``name`` that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(f"{name}.{key}", old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{name}[{index}]", before, now)
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield f"{name}: {_short(old)} before, {_short(new)} now"


def _short(value: Any) -> str:
    """A value in few characters. Both ends are kept: paths differ at theirs."""
    if value is _ABSENT:
        return "absent"
    text = json.dumps(value, ensure_ascii=False)
    half = (_WIDTH - 3) // 2
    return text if len(text) <= _WIDTH else f"{text[:half]}...{text[-half:]}"
