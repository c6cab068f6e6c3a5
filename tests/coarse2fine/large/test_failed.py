"""The list of blocks that failed: where they lie, for as long as they have not been done."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
from store_bench import Bench

from canvas import Box
from coarse2fine.large.failed import SUFFIX
from coarse2fine.large.phases import UnfinishedError

pytestmark = pytest.mark.usefixtures("small_chunks", "bright_networks")


@pytest.mark.long
def test_segment_store__blocks_fail__are_listed_until_a_rerun_does_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In voxels of the input and in its unit, also of a region; skipped ones stay listed, until a run does them."""
    module = importlib.import_module("coarse2fine.large.segment")
    original = module.SegmentBlock.__call__

    def unlucky(self: Any, key: Any, run: Any) -> Any:
        if key == (0, 0, 1):
            raise ValueError("bad luck")
        return original(self, key, run)

    listed = bench.folder / f"out.zarr{SUFFIX}"
    region = Box((0, 4, 12), (8, 32, 160))
    with monkeypatch.context() as patch:
        patch.setattr(module.SegmentBlock, "__call__", unlucky)
        with pytest.raises(UnfinishedError):
            bench(region=region, failed=listed)
        first = json.loads(listed.read_text())
        report = bench(region=region, failed=listed, skip_failed=True)
    (block,) = json.loads(listed.read_text())
    assert first == [block]
    assert block["phase"] == "segment"
    assert block["key"] == [0, 0, 1]
    (z, y, x) = block["voxels"]
    assert z == [0, 8]
    assert y[0] == 4
    assert block["where"] == f"voxels {z[0]}:{z[1]},{y[0]}:{y[1]},{x[0]}:{x[1]} (z, y, x)"
    assert block["world"][0] == [-1, 15]  # voxels of 2 mm, from outer face to outer face
    assert block["world"][1:] == [[a - 0.5, b - 0.5] for a, b in (y, x)]
    assert block["unit"] == "mm"
    assert "bad luck" in block["message"]
    assert len(report.failures) == 1
    bench(region=region, failed=listed, overwrite=True, restart=True)
    assert not listed.exists()
