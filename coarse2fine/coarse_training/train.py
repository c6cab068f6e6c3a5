"""Coarse models for some cases: preprocessed once, then trained side by side in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from coarse2fine.coarse_training.job import CONFIGURATION, EPOCH, LOG, PROGRESS, STATE, Job
from coarse2fine.coarse_training.plan import coarse_plans, dataset_of, look_at, plan_coarse
from coarse2fine.coarse_training.preprocess import coarse_case, start_data, write_case
from coarse2fine.coarse_training.publish import write_model
from coarse2fine.coarse_training.targets import LabelArray
from coarse2fine.errors import ModelError
from coarse2fine.io import Volume, atomic_write
from coarse2fine.nnunet.checkpoint import read_json
from coarse2fine.nnunet.fingerprint import model_fingerprint
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.system.device import is_host
from coarse2fine.system.timing import Progress

NAME = "Dataset001_Coarse"
DATA, ABOUT, DESCRIPTION, MODEL = "preprocessed", "about.json", "job.json", "model"
LEAST_WEIGHT, MOST_WEIGHT = 2.0, 30.0
"""Of foreground in the loss: the root of how many times rarer it is, within bounds."""
_LOOK = 0.5  # seconds between two looks at how far trainings are
_PATIENCE = 10.0  # seconds that a training gets to end


@dataclass(frozen=True, slots=True)
class TrainingCase:
    """A case to train on.

    Attributes:
        name: Of the case.
        about: What tells it from another one of this name, for JSON.
        read: Its volume, in memory, and its labels on the volume's own grid.
    """

    name: str
    about: Any
    read: Callable[[], tuple[Volume[Any], LabelArray]]


@dataclass(frozen=True, slots=True)
class Effort:
    """What trainings may cost.

    Attributes:
        seconds: All of them together.
        steps: Most steps of each.
        seed: Of all random numbers.
    """

    seconds: float
    steps: int = 3000
    seed: int = 0


def train_models(
    groups: Mapping[str, Sequence[str]],
    cases: Sequence[TrainingCase],
    fine: Model,
    effort: Effort,
    work: Path,
    progress: Progress,
) -> dict[str, Model]:
    """Coarse models, each trained on some of the cases.

    What is found in the work folder is gone on with, if it was made for the same cases and fine model.

    Args:
        groups: For each model, by a name of it, the names of the cases that it is trained on.
        cases: All cases; one that no model is trained on is not looked at, not even to plan the network.
        fine: The fine model, whose labels, intensities and orientation the coarse ones share.
        effort: Time and steps.
        work: Folder for all that is between.
        progress: Told of ``preprocess``, in cases, and of ``train``, in percent.

    Returns:
        The models, on the fine model's device, under the names of the groups.

    Raises:
        ModelError: If a training fails.
        VolumeError: If no case has an object.
    """
    used = {name for group in groups.values() for name in group}
    data, weight = preprocess([case for case in cases if case.name in used], fine, work, progress)
    workers = _workers(fine.device, len(groups))
    seconds = effort.seconds / ceil(len(groups) / workers)
    common = _job(data, fine, effort, seconds, workers, weight)
    jobs = [replace(common, cases=tuple(groups[name]), work=work / name) for name in groups]
    for job in jobs:
        _begin(job)
    missing = [job for job in jobs if not _finished(job.work).exists()]
    if missing:
        _run(missing, workers, progress)
        for job in missing:
            _publish(job)
    return {name: load_model(work / name / MODEL, device=fine.device) for name in groups}


def preprocess(cases: Sequence[TrainingCase], fine: Model, work: Path, progress: Progress) -> tuple[Path, float]:
    """Plan the coarse network, and bring all cases onto its grid, unless that was done.

    Returns:
        The data's folder, and what foreground should count in the loss.
    """
    data, about = work / DATA / NAME, work / ABOUT
    made = {"cases": {case.name: case.about for case in cases}, "fine": model_fingerprint(fine)}
    made = json.loads(json.dumps(made))
    known = read_json(about) if about.exists() else {}
    if known.get("made") == made:
        return data, float(known["weight"])
    about.unlink(missing_ok=True)
    total = 2 * len(cases)
    contents = []
    for index, case in enumerate(cases):
        contents.append(look_at(*case.read(), fine))
        progress("preprocess", index + 1, total)
    plan = plan_coarse(contents, fine)
    start_data(data, coarse_plans(plan, fine, NAME), dataset_of(fine, len(cases)))
    shares: list[float] = []
    for index, case in enumerate(cases):
        image, labels = coarse_case(*case.read(), fine, plan.spacing)
        write_case(data, case.name, image, labels)
        shares.append(float(np.isin(labels, fine.labels.foreground).mean()))
        progress("preprocess", len(cases) + index + 1, total)
    for old in work.glob(f"*/{STATE}"):  # of other data
        old.unlink()
    for old in work.glob(f"*/{MODEL}/fold_all/*"):
        old.unlink()
    weight = float(np.clip(max(mean(shares), 1e-9) ** -0.5, LEAST_WEIGHT, MOST_WEIGHT))
    with atomic_write(about) as path:
        path.write_text(json.dumps({"made": made, "weight": weight}), encoding="utf-8")
    return data, weight


def _begin(job: Job) -> None:
    """Forget what another training left in the folder: a model must not look at cases that it was trained on.

    One of the same cases and random numbers that is given more time goes on, also if it was finished.
    """
    description = job.work / DESCRIPTION
    known = Job.read(description) if description.exists() else None
    if known is not None and replace(known, steps=0, seconds=0, threads=0, device="") != replace(
        job, steps=0, seconds=0, threads=0, device=""
    ):
        shutil.rmtree(job.work)
    elif known is not None and (job.seconds > known.seconds or job.steps > known.steps):
        _finished(job.work).unlink(missing_ok=True)
    job.work.mkdir(parents=True, exist_ok=True)
    job.write(description)


def _finished(work: Path) -> Path:
    """What is there when a training is."""
    return work / MODEL / "fold_all" / "checkpoint_final.pth"


def _workers(device: torch.device, jobs: int) -> int:
    """How many trainings run side by side: on a CPU one on each core, as small networks gain little from two."""
    return min(jobs, os.cpu_count() or 1) if is_host(device) else 1


def _job(data: Path, fine: Model, effort: Effort, seconds: float, workers: int, weight: float) -> Job:
    """What all trainings have in common."""
    threads = max((os.cpu_count() or 1) // workers, 1)
    steps = ceil(effort.steps / EPOCH) * EPOCH
    return Job(data, data, (), fine.mirror_axes, steps, seconds, str(fine.device), threads, effort.seed, weight)


def _run(jobs: Sequence[Job], workers: int, progress: Progress) -> None:
    """Run all trainings, some at a time; none outlives this."""
    waiting, running = list(jobs), dict[Job, subprocess.Popen[bytes]]()
    total = sum(job.seconds for job in jobs)
    with _ended(running):
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                running[job] = _start(job)
            time.sleep(_LOOK)
            for job, process in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    _check(job, process.returncode)
            progress("train", min(int(100 * sum(map(_spent, jobs)) / total), 100), 100)
    progress("train", 100, 100)


def _start(job: Job) -> subprocess.Popen[bytes]:
    """A training's process; what it prints goes into its log."""
    description = job.work / DESCRIPTION
    folders = {"raw": job.data.parent, "preprocessed": job.data.parent, "results": job.work / "results"}
    environment = {f"nnUNet_{name}": str(path.resolve()) for name, path in folders.items()}
    # Compiling takes longer than it saves in so few steps.
    environment |= {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f", "OMP_NUM_THREADS": str(job.threads)}
    with (job.work / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "coarse2fine.coarse_training.trainer", str(description), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
        )


@contextmanager
def _ended(running: Mapping[Job, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ends processes that are still running when this is left."""
    try:
        yield
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _spent(job: Job) -> float:
    """Seconds that a training took so far."""
    path = job.work / PROGRESS
    return float(read_json(path)["seconds"]) if path.exists() else 0.0


def _check(job: Job, code: int) -> None:
    """Refuse a training that failed.

    Raises:
        ModelError: With the last thing that it said.
    """
    if code or not (job.work / STATE).exists():
        log = job.work / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ModelError(
            f"training the coarse model ended with code {code}: {lines[-1][:300] if lines else 'it said nothing'}",
            f"{log} has all that it said. The same command goes on from there; --no-training does without.",
        )


def _publish(job: Job) -> None:
    """The model folder of a finished training."""
    state: dict[str, Any] = torch.load(job.work / STATE, map_location="cpu", weights_only=True)
    plans, dataset = (read_json(job.data / name) for name in ("plans.json", "dataset.json"))
    folder = job.work / MODEL
    write_model(folder, plans, dataset, state["network"], CONFIGURATION, job.mirror_axes)
