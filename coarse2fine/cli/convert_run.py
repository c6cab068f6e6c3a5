"""What ``c2f-convert`` does: published data sets in, raw data for nnU-Net v2 or a table out."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import replace

from rich.console import Console

from coarse2fine.cli.bars import show_bars
from coarse2fine.cli.convert_table import make_table
from coarse2fine.convert.covid import find_covid
from coarse2fine.convert.cremi import find_cremi
from coarse2fine.convert.fafb import StoreOptions, find_fafb
from coarse2fine.convert.rawdata import build, hold_out, target_folder
from coarse2fine.convert.samples import RawData, Written
from coarse2fine.convert.word import find_word
from coarse2fine.system.terminal import plain

RADIOGRAPHS = ("mimic-cxr", "chestxray14", "chexpert", "siim-acr")
NUMBERS = {"covid": 201, "word": 202, "cremi": 203, "fafb": 204}
"""nnU-Net's numbers of the data sets, unless others are asked for."""

_VARIABLE = "nnUNet_raw"


def convert(options: argparse.Namespace, console: Console) -> None:
    """Find the cases, write the data set, and say what comes next.

    Raises:
        C2FError: If something is missing, does not fit or cannot be written.
    """
    if options.dataset in RADIOGRAPHS:
        make_table(options, console)
        return
    data = find(options)
    data = replace(data, name=options.name or data.name, samples=hold_out(data.samples, options.split))
    number = options.dataset_id if options.dataset_id is not None else NUMBERS[options.dataset]
    target = target_folder(options.output, number, data.name, overwrite=options.overwrite)
    with show_bars(console) as bars:
        task = bars.add_task("cases", total=len(data.samples))
        written = build(
            data,
            target,
            overwrite=options.overwrite,
            link=options.link,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    for warning in written.warnings:
        console.print(plain(f"warning: {warning}"), style="yellow", soft_wrap=True)
    out = Console(markup=False, emoji=False, highlight=False)
    out.print(plain(f"written: {target}, {written.training} training and {written.test} test cases"), soft_wrap=True)
    out.print(plain("\n".join(["next:", *next_commands(written, number, options.dataset)])), soft_wrap=True)


def find(options: argparse.Namespace) -> RawData:
    """The cases that the command line names."""
    if options.dataset == "covid":
        return find_covid(options.sources)
    if options.dataset == "word":
        return find_word(options.source)
    if options.dataset == "cremi":
        return find_cremi(options.sources)
    spacing = tuple(options.spacing) if options.spacing else None
    how = StoreOptions(options.array, options.label_array, spacing, options.unit)
    return find_fafb(options.image, options.labels, options.region, how, options.class_name)


def next_commands(written: Written, number: int, config: str) -> list[str]:
    """What to type next: preprocessing, both trainings, and a first run.

    Args:
        written: The data set.
        number: nnU-Net's number of it.
        config: Name of the shipped configuration for it.
    """
    root = written.folder.parent.resolve()
    lines = []
    if os.environ.get(_VARIABLE) != str(root):
        lines.append(f"export {_VARIABLE}={shlex.quote(str(root))}")
    lines.append(f"nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity -c 3d_lowres 3d_fullres")
    lines.append(
        "# nnU-Net plans 3d_lowres only for images much larger than its patch; without one, use --mode one-stage"
    )
    # "all" and not folds: five folds need five cases, and the agent's own training holds cases out, too.
    lines += [f"nnUNetv2_train {number} {configuration} all" for configuration in ("3d_lowres", "3d_fullres")]
    models = f'"$nnUNet_results"/{written.folder.name}/nnUNetTrainer__nnUNetPlans__'
    images = written.folder.resolve() / ("imagesTs" if written.test else "imagesTr")
    lines.append(
        f"c2f-infer -i {shlex.quote(str(images))} -o predictions -c {config} "
        f"--coarse-model {models}3d_lowres --fine-model {models}3d_fullres"
    )
    return lines
