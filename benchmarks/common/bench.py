"""One labelled case with its models loaded once, ready to be segmented in any way, and what such a run costs.

Each run goes from files to a file. What earlier runs left behind (caches, freed memory) is dropped before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.common.machine import PeakMemory, forget, relative
from benchmarks.common.merging import merge_labels
from benchmarks.common.registry import Case, Dataset, MissingDataError, config_file, find_model
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.evaluation.masks import leave_out
from coarse2fine.io import find_cases, read_volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model, nnunet_predictor
from coarse2fine.pipeline import Pipeline
from coarse2fine.report import RunReport
from coarse2fine.system.device import pick_device
from coarse2fine.system.memory import SteadyHeap
from coarse2fine.system.timing import Clock

ROLE = "benchmark_role"
"""Attribute by which a network tells what it is used for; copies of networks keep it."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What one run cost.

    Attributes:
        total_s: From file to file.
        coarse_s: From the volume in memory to the choice of regions; 0 where nothing looks coarsely.
        fine_s: From there to the labels.
        network_s: Of these in passes of the fine network.
        network_voxels: Voxels that went into networks, by role of the model; mirrored passes count each.
        canvases: Inputs of the fine network.
        fill: Mean share of a canvas that crops fill; 1 for tiles.
        bound_s: Least time that the same choice of regions could take: the coarse pass, and the fine network's time on
            their slots alone, without gaps between them. None where nothing is packed.
        peak_rss_mb: Peak resident memory of the process; None where it cannot be measured.
        peak_gpu_mb: Peak of what tensors took on the GPU; None without one.
        report: What coarse2fine says about its run; None for others.
    """

    total_s: float
    coarse_s: float
    fine_s: float
    network_s: float
    network_voxels: dict[str, int]
    canvases: int
    fill: float
    bound_s: float | None = None
    peak_rss_mb: float | None = None
    peak_gpu_mb: float | None = None
    report: RunReport | None = field(default=None, compare=False)


class Bench:
    """One case with its models.

    Args:
        dataset: Where models and settings are.
        case: With an image.
        source: Where models lie, see ``find_model``.
        overrides: Settings that win over the data set's.
        mirroring: Whether the fine model's inputs are mirrored, in every row alike.

    Raises:
        MissingDataError: If the case has no image, or a model is missing that is asked for.
    """

    def __init__(
        self,
        dataset: Dataset,
        case: Case,
        *,
        source: str = "ours",
        overrides: Sequence[str] = (),
        mirroring: bool = False,
    ) -> None:
        if case.image is None:
            raise MissingDataError(f"{dataset.name} {case.name} has no image, only a reference", "Choose other rows.")
        self.dataset, self.case, self.mirroring, self._image = dataset, case, mirroring, case.image
        self._source, self._overrides = source, tuple(overrides)
        self._models: dict[str, Model] = {}
        self._memory = PeakMemory()

    def config(self, *overrides: str) -> Config:
        """The data set's settings, with further ones on top."""
        folders = {"coarse": "coarse", "fine": "fine"}
        models = [f"{stage}.model={json.dumps(str(self.folder(role)))}" for stage, role in folders.items()]
        mirroring = f"fine.mirroring={str(self.mirroring).lower()}"
        return load_config(config_file(self.dataset), [*models, mirroring, *self._overrides, *overrides])

    def folder(self, role: str) -> Path:
        """The folder of a model."""
        return find_model(self.dataset, role, self._source)

    def fingerprint(self, *roles: str) -> str:
        """A short fingerprint of the weights and plans of models."""
        digest = hashlib.sha256()
        for role in roles:
            for path in sorted(self.folder(role).rglob("*.json")) + sorted(self.folder(role).rglob("*.pth")):
                digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def has(self, role: str) -> bool:
        """Whether there is a model for a role."""
        try:
            return bool(self.folder(role))
        except MissingDataError:
            return False

    def model(self, role: str) -> Model:
        """A model, loaded once; its networks know their role."""
        if role not in self._models:
            settings = self.config()
            stage = settings.coarse if role == "coarse" else settings.fine
            folds = None if stage.folds is None else tuple(str(fold) for fold in stage.folds)
            device = pick_device(settings.device)
            model = load_model(self.folder(role), folds=folds, checkpoint=stage.checkpoint, device=device)
            for network in model.networks:
                setattr(network, ROLE, role)
            self._models[role] = model
        return self._models[role]

    def pipeline(self, *overrides: str, fine: str = "fine") -> Pipeline:
        """The product, with settings on top of the data set's.

        Args:
            *overrides: Such as ``canvas.norm=slot``.
            fine: Role of the fine model.
        """
        return Pipeline(self.config(*overrides), self.model("coarse"), self.model(fine))

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """One input for each channel."""
        return tuple(find_cases(self._image, self.model("fine").channels)[0].files)

    @cached_property
    def reference(self) -> NDArray[Any]:
        """True labels, (z, y, x) of the file; background where nobody has decided."""
        return self.decided(self._stored_reference)

    def decided(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Labels to compare with the reference: background where nobody has decided."""
        return leave_out(labels, self._stored_reference, self.model("fine").labels.ignore)

    @cached_property
    def _stored_reference(self) -> NDArray[Any]:
        stored = read_volume([self.case.reference]).channels[0]
        return merge_labels(stored, self.dataset.merged)

    @property
    def labels(self) -> tuple[int, ...]:
        """Foreground labels."""
        return self.model("fine").labels.foreground

    def on(self, case: Case) -> Bench:
        """The same models and settings on another case; models that are loaded are shared."""
        other = Bench(self.dataset, case, source=self._source, overrides=self._overrides, mirroring=self.mirroring)
        other._models = self._models
        return other

    def run(self, method: Callable[[Bench, Path], Effort], output: Path) -> Effort:
        """Let a method segment the case, and add what its memory peaks were; see ``rows.ROWS``."""
        forget()
        self._memory.reset()
        effort = method(self, output)
        peaks = {"peak_rss_mb": self._memory.read_mb(), "peak_gpu_mb": self._memory.read_gpu_mb()}
        return Effort(**{name: getattr(effort, name) for name in Effort.__slots__} | peaks)


def run_ours(bench: Bench, output: Path, *, overrides: Sequence[str] = (), fine: str = "fine") -> Effort:
    """The product, from file to file, as c2f-infer runs it."""
    pipeline = bench.pipeline(*overrides, fine=fine)
    with count_voxels() as voxels:
        report = pipeline.run_files(bench.files, output, SteadyHeap()).report
    timing, network_s = report.timing_s, report.network_s.fine
    coarse_s = timing.coarse + timing.rois + timing.assign
    fine_s = timing.pack + timing.fine
    canvases, fill, bound_s = int(report.canvases.count), float(report.canvases.fill), None
    if pipeline.config.mode == "one-stage":
        canvases, fill = round(voxels[fine] / passes(pipeline) / np.prod(pipeline.fine.patch)), 1.0
    elif pipeline.config.canvas.enabled and canvases:
        needed = fill * report.canvases.voxels * passes(pipeline)
        bound_s = timing.coarse + network_s * needed / voxels[fine]
    return Effort(timing.total, coarse_s, fine_s, network_s, dict(voxels), canvases, fill, bound_s, report=report)


def passes(pipeline: Pipeline) -> int:
    """Network passes for each input of the fine stage: one for each fold and each combination of mirrored axes."""
    fine, mirroring = pipeline.fine, pipeline.config.fine.mirroring
    return len(fine.networks) * (2 ** len(fine.mirror_axes) if mirroring else 1)


def run_nnunet(bench: Bench, output: Path, *, mirroring: bool | None = None, tile_step: float | None = None) -> Effort:
    """nnU-Net's own predictor, reader, preprocessing, export and writer, without worker processes.

    Args:
        bench: The case.
        output: Ends as nnU-Net writes this data set.
        mirroring: None = as in every row.
        tile_step: None = as configured.
    """
    settings, clock = bench.config().fine, Clock[str]()
    step = settings.tile_step if tile_step is None else tile_step
    mirror = bench.mirroring if mirroring is None else mirroring
    # A copy of its own: with several folds nnU-Net overwrites the weights of the network that it is given.
    predictor = nnunet_predictor(bench.model("fine"), tile_step=step, mirroring=mirror)
    setattr(predictor.network, ROLE, "fine")
    timed = clock.time("network")(predictor.predict_sliding_window_return_logits)
    predictor.predict_sliding_window_return_logits = timed
    stem = output.with_name(output.name.removesuffix(predictor.dataset_json["file_ending"]))
    with count_voxels() as voxels, clock.time("total"), contextlib.redirect_stdout(io.StringIO()):
        predictor.predict_from_files_sequential([[str(file) for file in bench.files]], [str(stem)])
    total, network = clock.seconds["total"], clock.seconds["network"]
    fine = bench.model("fine")
    count = len(fine.networks) * (2 ** len(fine.mirror_axes) if mirror else 1)
    return Effort(total, 0.0, total, network, dict(voxels), round(voxels["fine"] / np.prod(fine.patch) / count), 1.0)


@contextlib.contextmanager
def count_voxels() -> Iterator[Counter[str]]:
    """Counts the voxels that go into networks of a known role, whoever runs them."""
    voxels: Counter[str] = Counter()

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        role = getattr(module, ROLE, None)
        if role is not None and inputs and isinstance(inputs[0], torch.Tensor):
            voxels[role] += inputs[0].shape[0] * int(np.prod(inputs[0].shape[2:]))

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield voxels
    finally:
        handle.remove()


def portable(config: Config) -> Config:
    """Settings that are the same on every machine: without the models' folders, and the agent's as seen from here."""
    agent = config.assign.agent
    changes: dict[str, Any] = {
        stage: getattr(config, stage).model_copy(update={"model": None}) for stage in ("coarse", "fine")
    }
    changes["assign"] = config.assign.model_copy(update={"agent": portable_agent(agent)})
    return config.model_copy(update=changes)


def portable_agent(name: str) -> str:
    """A rule's name, or an agent's folder as seen from the repository."""
    return relative(Path(name)) if "/" in name else name
