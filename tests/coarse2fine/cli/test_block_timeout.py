"""c2f-infer --block-timeout: what it refuses, and that its remedies work."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import blobs
from infer_runs import SHAPE, Models, run, use
from large_volumes import write_image

from coarse2fine.cli.infer import build_parser
from coarse2fine.cli.stores import pick_engine


@pytest.mark.parametrize(
    ("time", "words"), [("soon", "is no time above 0"), ("0", "is no time above 0"), ("10m", "Add --workers 1")]
)
def test_main__time_limit_without_workers_or_no_time__is_refused(
    time: str, words: str, tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    image = write_image(tmp_path / "in.zarr", blobs(SHAPE))
    assert run("-i", image, "-o", tmp_path / "out.zarr", *use(models), "--block-timeout", time) == 1
    assert words in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["in.zarr"]


def test_pick_engine__remedies__are_taken() -> None:
    """Times as the message writes them, with a process of its own."""
    pytest.importorskip("distributed", reason="the extra coarse2fine[cluster] is not installed")
    for text, seconds in (("90s", 90), ("10m", 600), ("1h", 3600)):
        engine = pick_engine(build_parser().parse_args(["--workers", "1", "--block-timeout", text]))
        assert engine.block_timeout_s == seconds
