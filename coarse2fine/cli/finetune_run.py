"""What ``c2f-finetune`` does: images and labels in, weights, predictions and measures out."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from coarse2fine.cli.bars import show_bars
from coarse2fine.cli.finetune_data import check_data, choose_of, load_of, model_of, rows_of
from coarse2fine.cli.finetune_start import settings_of, start_of
from coarse2fine.cli.vit_options import told_positions
from coarse2fine.config.types import Device
from coarse2fine.errors import ConfigError
from coarse2fine.finetune.begin import Start
from coarse2fine.finetune.run import METRICS, PREDICTIONS, is_finished, run
from coarse2fine.networks.vit import ViTShape
from coarse2fine.pretrain.state import Done
from coarse2fine.pretrain.table import Table
from coarse2fine.pretrain.weights import WEIGHTS
from coarse2fine.system.device import pick_device
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.system.terminal import plain, shown

PREPARED = "prepared"


def finetune(options: argparse.Namespace, console: Console) -> None:
    """Find images and labels, learn from them, and say how good it became.

    Raises:
        C2FError: If something is missing or does not fit.
    """
    keep_freed_memory()
    device = _device(options.device)
    check_data(options)
    model = model_of(options)
    rows = rows_of(options, model)
    start = start_of(options, rows.files[0] if isinstance(rows, Table) else None, model)
    settings = settings_of(options, start, pictures=isinstance(rows, Table))
    chosen = choose_of(options, rows, model, settings)
    start.make(1)  # so that weights that do not fit are told of before anything is read
    _check_axes(start, pictures=isinstance(rows, Table))
    if is_finished(options.output, settings, {**start.about, **chosen.about}):
        console.print(f"finished already: {plain(str(options.output))}", soft_wrap=True)
        _tell(options.output, console)
        return
    if isinstance(start.network, ViTShape) and (note := told_positions(start.network)):
        console.print(note, soft_wrap=True)
    folder = options.output / PREPARED
    folder.mkdir(exist_ok=True)
    with show_bars(console, width=10, remaining=True, transient=False) as bars:
        prepare, learn = bars.add_task("prepare", total=None), bars.add_task("learn", total=settings.schedule.steps)

        def prepared(done: int, total: int) -> None:
            bars.update(prepare, completed=done, total=total)

        def told(done: Done) -> None:
            bars.update(learn, completed=done.step, description=f"loss {done.curve[-1].loss:.3f}")

        data = load_of(chosen, start, settings, folder, prepared)
        run(start.make(data.task.outputs), data, settings, options.output, device=device, told=told)
    shutil.rmtree(folder, ignore_errors=True)
    console.print(f"written: {plain(str(options.output))} ({WEIGHTS}, {PREDICTIONS}, {METRICS})", soft_wrap=True)
    _tell(options.output, console)


def _check_axes(start: Start, *, pictures: bool) -> None:
    """See that a network for pictures gets pictures, and one for volumes gets volumes.

    Raises:
        ConfigError: If not.
    """
    if len(start.patch) != (2 if pictures else 3):
        sees = " x ".join(map(str, start.patch))
        raise ConfigError(
            f"the network sees images of {sees}, which are {'no pictures' if pictures else 'no volumes'}",
            "Use weights of a network for such images, or plans of another configuration (-c).",
        )


def _device(text: str) -> torch.device:
    try:
        return pick_device(TypeAdapter(Device).validate_python(text))
    except ValidationError:
        raise ConfigError(f"--device {shown(text)} is unknown", "Use auto, cpu, cuda, cuda:N or mps.") from None


def _tell(folder: Path, console: Console) -> None:
    """Measures of a finished fine-tuning, each on a line."""
    document = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    for note in document["notes"]:
        console.print(plain(note), soft_wrap=True)
    for name, measure in document["measures"].items():
        if measure["value"] is None:
            console.print(f"{plain(name)}: not defined, as the images held out are all alike", soft_wrap=True)
            continue
        low, high = (f"{end:.3f}" for end in measure["interval"])
        console.print(f"{plain(name)}: {measure['value']:.3f} (95 %: {low} to {high})", soft_wrap=True)
