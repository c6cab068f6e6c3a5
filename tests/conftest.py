"""What tests of all rooms need: folders of tiny models, agents for them, volumes, and modules of the benchmarks."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import write_model

from assignnet.learn.agent import Agent, AgentCard, save_agent
from assignnet.learn.network import AssignNetwork, NetworkSize
from assignnet.learn.supervised import GainNetwork
from coarse2fine.config.reader import load_config
from coarse2fine.fine.sizes import plan_sizes
from coarse2fine.nnunet.loading import load_model
from coarse2fine.selection.features import FeatureSettings, feature_card
from coarse2fine.selection.selector import cost_model_of

collect_ignore = ["support/mutants.py"]  # a script, which needs mutmut

SHARED = Path(__file__).parents[2] / "shared"

torch.set_num_threads(1)  # on tiny volumes threads cost more than they bring


@pytest.fixture(scope="session", autouse=True)
def signals_of_a_terminal() -> None:
    """A parent such as nohup may have switched signals off, which commands heed, and so do those that tests start."""
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def modes_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that their owner may not read are not opened, as for every user but root."""

    def obedient(name: str) -> None:
        original = getattr(Path, name)

        def open_as_user(path: Path, *arguments: Any, **options: Any) -> Any:
            if path.exists() and not path.stat().st_mode & 0o400:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return original(path, *arguments, **options)

        monkeypatch.setattr(Path, name, open_as_user)

    for name in ("open", "read_text", "read_bytes"):
        obedient(name)


@pytest.fixture
def no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings keep no curves: TensorBoard takes seconds to import."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a tiny model folder; arguments as of ``tiny_models.TinyModel``."""
    return lambda **options: write_model(tmp_path_factory.mktemp("models") / "T__P__C", **options)


def write_agent(
    folder: Path,
    models: tuple[Path, Path],
    overrides: Sequence[str] = (),
    *,
    features: FeatureSettings | None = None,
    kind: str = "gains",
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write an untrained agent that fits two model folders and settings; ``changes`` replace entries of its card.

    Kind ``gains`` believes the heatmap, kind ``policy`` chooses nearly everything in an order of its own.
    """
    settings = features or FeatureSettings()
    coarse, fine = (load_model(model) for model in models)
    config = load_config(None, overrides)
    cost_model = cost_model_of(config, plan_sizes(config, fine))
    nodes, volume = settings.size(coarse, fine)
    size = NetworkSize(nodes, volume, width=16, layers=1, heads=2)
    torch.manual_seed(seed)
    network: AssignNetwork | GainNetwork = GainNetwork(size)
    if kind == "policy":
        network = AssignNetwork(size)
        with torch.no_grad():  # scores that differ between regions, and stopping last
            network.pointer.stop.copy_(-network.pointer.key.weight.T @ network.pointer.score.weight[0].sign())
            network.pointer.score.weight.mul_(5)
    card: dict[str, Any] = {
        "kind": kind,
        "network": size,
        "features": feature_card(settings, coarse, fine, config.coarse.foreground),
        "problem": {
            "packing": "same_size" if cost_model.context is None else "same_scale",
            "large": cost_model.large,
            "slot": list(cost_model.slot),
            "native": list(cost_model.largest),
        },
        "metric": "dice",
        "weights": (0.01, 0.5),
        "training": {},
        "metrics": {},
    }
    save_agent(folder, Agent(AgentCard(**card | changes), network))
    return folder


def shared(name: str) -> Path:
    """A file or folder of developers' data and models, for tests that have the mark ``shared``."""
    if not (SHARED / name).exists():
        pytest.skip(f"../shared/{name} is not here: data and models for developers only")
    return SHARED / name


def blobs(shape: tuple[int, int, int], *, seed: int = 0, dtype: type = np.int16) -> np.ndarray:
    """A textured volume with bright blobs, and a zero border that nnU-Net crops away."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape).reshape(3, -1).T
    volume = rng.normal(80, 10, shape)
    for centre in rng.uniform(0.25, 0.75, (4, 3)) * shape:
        distance = np.linalg.norm((grid - centre) / (np.array(shape) / 10), axis=1).reshape(shape)
        volume += 100 * np.exp(-(distance**2))
    volume[:2], volume[:, :1], volume[..., -2:] = 0, 0, 0
    return volume.astype(dtype)


def import_benchmark(name: str) -> ModuleType:
    """A module of ``benchmarks/``."""
    return importlib.import_module(f"benchmarks.{name}")


def benchmark_module(name: str) -> Any:
    """A fixture that is such a module."""
    return pytest.fixture(scope="module")(lambda: import_benchmark(name))
