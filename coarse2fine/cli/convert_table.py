"""What ``c2f-convert`` does with radiographs: published data sets in, a table out."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from coarse2fine.cli.bars import show_bars
from coarse2fine.convert.chestxray14 import find_chestxray14
from coarse2fine.convert.chexpert import find_chexpert
from coarse2fine.convert.mimic_cxr import find_mimic_cxr
from coarse2fine.convert.radiographs import Radiographs, write_table
from coarse2fine.convert.siim_acr import IMAGES, MASKS, Pneumothorax, find_siim_acr, write_masks, write_pictures
from coarse2fine.errors import OutputError
from coarse2fine.system.terminal import plain

TABLE = "table.csv"


def make_table(options: argparse.Namespace, console: Console) -> None:
    """Write ``table.csv``, masks where there are some, and say what comes next.

    Raises:
        C2FError: If something is missing, does not fit or cannot be written.
    """
    path = options.output / TABLE
    if path.exists():
        raise OutputError(f"{path} exists", "Remove it, or choose another folder (-o).")
    images: Path = options.source
    if options.dataset == "siim-acr":
        found = find_siim_acr(options.source)
        _make(options.output / MASKS)
        write_masks(options.output / MASKS, found.data, found.runs)
        data = found.data
        if found.dicom:
            images = options.output / IMAGES
            _make(images)
            data = _pictures(images, found, console)
    else:
        data = find(options)
        _make(options.output)
    write_table(path, data)
    for warning in data.warnings:
        console.print(plain(f"warning: {warning}"), style="yellow", soft_wrap=True)
    out = Console(markup=False, emoji=False, highlight=False)
    patients = len({record["patient"] for record in data.records})
    out.print(plain(f"written: {path}, {len(data.records)} pictures of {patients} patients"), soft_wrap=True)
    out.print(plain("\n".join(["next:", *next_commands(options, images, data)])), soft_wrap=True)


def find(options: argparse.Namespace) -> Radiographs:
    """The pictures that the command line names, which stay where they are."""
    if options.dataset == "mimic-cxr":
        return find_mimic_cxr(options.source, options.reports, options.uncertain, frontal=options.frontal)
    if options.dataset == "chestxray14":
        return find_chestxray14(options.source, split=not options.no_split)
    return find_chexpert(options.source, options.uncertain, frontal=options.frontal)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error.strerror}", "Choose another folder (-o).") from None


def _pictures(folder: Path, found: Pneumothorax, console: Console) -> Radiographs:
    with show_bars(console) as bars:
        task = bars.add_task("pictures", total=len(found.data.records))
        return write_pictures(folder, found, lambda done, total: bars.update(task, completed=done, total=total))


def next_commands(options: argparse.Namespace, images: Path, data: Radiographs) -> list[str]:
    """What to type next, with the folder that the table's files are named from."""
    where = f"--table {shlex.quote(str(options.output / TABLE))} --images {shlex.quote(str(images))}"
    if options.dataset == "mimic-cxr":
        return [f"c2f-pretrain --objective mrm --network vit {where} --text text -o pretrained"]
    if options.dataset == "siim-acr":
        task = f"--masks {shlex.quote(str(options.output / MASKS))}"
    else:
        about = ("file", "patient", "study", "split", "view", "text")
        task = "--labels " + shlex.quote(",".join(name for name in data.records[0] if name not in about))
    return [
        f"c2f-pretrain --objective mae --network vit {where} -o pretrained",
        f"c2f-finetune {where} {task} --weights pretrained/weights.safetensors -o tuned",
    ]
