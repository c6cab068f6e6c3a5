"""Options of ``c2f-infer`` that only stores have; apart, so that files need not wait for what stores import."""

from __future__ import annotations

import argparse

from coarse2fine.errors import ConfigError

_ONLY_STORES = {
    "array": "--array",
    "spacing": "--spacing",
    "unit": "--unit",
    "axes": "--axes",
    "channel": "--channel",
    "region": "--region",
    "workers": "--workers",
    "scheduler": "--scheduler",
    "dashboard": "--dashboard",
    "work": "--work",
    "restart": "--restart",
    "shards": "--shards",
    "neuroglancer": "--neuroglancer",
    "block_timeout": "--block-timeout",
    "dry_run": "--dry-run",
    "skip_failed": "--skip-failed",
}


def refuse_options(options: argparse.Namespace) -> None:
    """Refuse options that have no meaning for files that are read as a whole.

    Raises:
        ConfigError: Naming the first of them.
    """
    for name, option in _ONLY_STORES.items():
        value = getattr(options, name)
        if value is not None and value is not False:  # channel 0 is one
            raise ConfigError(
                f"{option} needs a volume that is read by region, and {options.input} is none",
                "Leave it out, or store the volume as zarr, N5, neuroglancer precomputed or CREMI HDF5.",
            )
