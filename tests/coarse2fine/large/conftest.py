"""Runs over a store of bars, by networks that see intensities."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from large_volumes import bright_models, write_image
from store_bench import CHUNK, COARSE, FINE, IMAGE, PHASES, Bench

from canvas import triple
from coarse2fine.config.schema import Config
from coarse2fine.pipeline import Pipeline


@pytest.fixture(scope="module")
def plain_model(model_folder: Callable[..., Path]) -> Path:
    """A model folder for all but the networks."""
    return model_folder(scheme="NoNormalization", spacing=(2.0, 1.0, 1.0))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells end at chunks, and those of real results are larger than these volumes."""
    module = importlib.import_module("coarse2fine.large.plan")
    monkeypatch.setattr(module, "chunk_of", lambda shape: triple(min(pair) for pair in zip(shape, CHUNK, strict=True)))


@pytest.fixture
def bright_networks(plain_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that see intensities, in place of those that a configuration names."""
    models = bright_models(plain_model, coarse=COARSE, fine=FINE)

    def from_config(config: Config, *, trust_checkpoint: bool = False) -> Pipeline:
        return Pipeline(config, *models)

    monkeypatch.setattr(Pipeline, "from_config", from_config)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Bars in an OME-NGFF image with one level."""
    return Bench(tmp_path, write_image(tmp_path / "in.zarr", IMAGE, chunk=20))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Counts the blocks that are begun in each phase; the entry ``crash`` = (phase, n) makes the n-th one crash."""
    seen: dict[str, Any] = {"count": Counter(), "crash": None, "error": KeyboardInterrupt}

    def watch(phase: str, module: str, name: str) -> None:
        task = getattr(importlib.import_module(f"coarse2fine.large.{module}"), name)
        call = task.__call__

        def counted(self: Any, key: Any, run: Any) -> Any:
            seen["count"][phase] += 1
            result = call(self, key, run)
            if seen["crash"] == (phase, seen["count"][phase]):
                raise seen["error"]
            return result

        monkeypatch.setattr(task, "__call__", counted)

    for phase, (module, name, _) in PHASES.items():
        watch(phase, module, name)
    return seen
