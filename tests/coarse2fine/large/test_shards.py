"""Results in shards: the same labels in fewer files, each of which one block writes as a whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
import zarr
from store_bench import EXPECTED, Bench, assert_same_objects

from canvas import Box
from coarse2fine.errors import ConfigError
from coarse2fine.io import Grid, LabelSpec, open_store
from coarse2fine.large.output import name_output
from coarse2fine.large.shards import GatherShard, parse_shard, shards_of, units_box

CHUNK = (64, 128, 128)


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json"]


@pytest.mark.long
@pytest.mark.usefixtures("small_chunks", "bright_networks")
def test_segment_store__shards__hold_what_chunks_do(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by zarr-python, tensorstore and ourselves, on all levels; gathering was stopped once, and goes on."""
    original, begun = GatherShard.__call__, []

    def stopped(self: Any, key: Any, run: Any) -> Any:
        begun.append(key)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return original(self, key, run)

    monkeypatch.setattr(GatherShard, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench(objects=True, shards="8,16,80")
    bench(objects=True, shards="8,16,80")
    assert len(begun) == 5  # of four shards, one of them twice
    bench("plain.zarr")
    array = zarr.open_group(bench.folder / "out.zarr", mode="r")["0"]
    assert (array.shards, array.chunks) == ((8, 16, 80), (4, 8, 20))
    assert_same_objects(array[:], EXPECTED)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{bench.folder}/out.zarr/0/"}}
    np.testing.assert_array_equal(ts.open(spec).result().read().result(), array[:])
    np.testing.assert_array_equal(bench.labels(level=1) != 0, bench.labels("plain.zarr", level=1) != 0)
    ours = open_store(str(bench.folder / "out.zarr"), as_labels=True).levels
    np.testing.assert_array_equal(ours[0].channels[0][:, :, :], array[:])
    assert len(files(bench.folder / "out.zarr" / "0")) <= 4 < len(files(bench.folder / "plain.zarr" / "0"))


def test_parse_shard__no_whole_chunks__is_refused_and_the_remedy_taken() -> None:
    """Whatever was meant, what the message proposes is a shape."""
    for text in ("100,300,9", "64,128", "a,b,c", "0,128,128", "64,128,-128"):
        with pytest.raises(ConfigError, match="--shards") as refused:
            parse_shard(text, CHUNK)
        near = re.search(r"--shards (\d+,\d+,\d+)", refused.value.remedy)[1]
        assert parse_shard(near, CHUNK)
    assert parse_shard("128,256,128", CHUNK) == (128, 256, 128)
    assert parse_shard("", CHUNK) == (256, 512, 512)


def test_shards_of__any_volume__cover_it_once() -> None:
    """Together they are the volume."""
    spec = LabelSpec("", "zarr", Grid((9, 20, 33), (1.0,) * 3), "uint8", (4, 4, 4), ((1, 1, 1),), "s", (8, 8, 16))
    seen = np.zeros(spec.grid.shape, int)
    for index in shards_of(spec):
        seen[units_box(spec, index).slices] += 1
    assert (seen == 1).all()
    assert units_box(spec, (1, 2, 2)) == Box((8, 16, 32), (9, 20, 33))


@pytest.mark.parametrize("where", ["precomputed://out", "out.hdf"])
def test_name_output__shards_of_another_format__are_refused(where: str) -> None:
    """Only zarr has them here."""
    with pytest.raises(ConfigError, match="for results in zarr"):
        name_output(where, objects=True, overwrite=False, shards="")
