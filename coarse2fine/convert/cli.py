"""``c2f-convert``: published data sets in, raw data for nnU-Net v2 out."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from coarse2fine.cli import guarded, plain
from coarse2fine.convert.covid import find_covid
from coarse2fine.convert.cremi import find_cremi
from coarse2fine.convert.rawdata import RawData, Written, build, hold_out, target_folder
from coarse2fine.convert.word import find_word

NUMBERS = {"covid": 201, "word": 202, "cremi": 203, "fafb": 204}
"""nnU-Net's numbers of the data sets, unless others are asked for."""

_VARIABLE = "nnUNet_raw"


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("-o", "--output", type=Path, required=True, metavar="NNUNET_RAW", help="nnU-Net's folder of raw data sets")
    add("--dataset-id", type=int, metavar="N", help="number of the data set, 1 to 999")
    add("--name", help="name of the data set, after DatasetNNN_")
    add("--split", action="append", default=[], metavar="CASE", help="hold a case out as test case; may be repeated")
    add("--link", action="store_true", help="hard links instead of copies of files that stay as they are")
    add("--overwrite", action="store_true", help="replace the data set if it exists")
    parser = argparse.ArgumentParser(
        prog="c2f-convert",
        description="Turn a published data set into raw data for nnU-Net v2.",
        epilog="Example: c2f-convert cremi sample_?_20160501.hdf -o nnUNet_raw --split C",
    )
    names = parser.add_subparsers(dest="dataset", required=True, metavar="NAME")

    def add_dataset(name: str, about: str) -> argparse.ArgumentParser:
        return names.add_parser(name, parents=[common], help=about, description=about)

    covid = add_dataset("covid", "COVID-19-20: lung lesions in CT")
    covid.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="folder with Train and Validation")
    word = add_dataset("word", "WORD: 16 abdominal organs in CT")
    word.add_argument("source", type=Path, metavar="SOURCE", help="folder with imagesTr, labelsTr and the others")
    cremi = add_dataset("cremi", "CREMI: synaptic clefts in EM")
    cremi.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="HDF5 files, or folders of them")
    fafb = add_dataset("fafb", "FAFB and other EM volumes in chunked stores: labelled regions")
    add = fafb.add_argument
    add("image", metavar="IMAGE", help="path or URL of the image's store")
    add("labels", metavar="LABELS", help="path or URL of the labels' store; all but 0 is foreground")
    add(
        "--region",
        action="append",
        required=True,
        metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="a case: voxels of the image, or lengths such as 0:2000nm; may be repeated",
    )
    add("--array", metavar="PATH", help="array of the image in its store")
    add("--label-array", metavar="PATH", help="array of the labels in their store")
    add("--spacing", nargs=3, type=float, metavar=("Z", "Y", "X"), help="voxel size, where the stores have none")
    add("--unit", help="unit of length, where the stores have none")
    add("--class-name", default="cleft", metavar="NAME", help="name of what is labelled (default: cleft)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    options = build_parser().parse_args(arguments)
    return guarded(console, lambda: convert(options, console))


def convert(options: argparse.Namespace, console: Console) -> None:
    """Find the cases, write the data set, and say what comes next.

    Raises:
        C2FError: If something is missing, does not fit or cannot be written.
    """
    data = find(options)
    data = replace(data, name=options.name or data.name, samples=hold_out(data.samples, options.split))
    number = options.dataset_id if options.dataset_id is not None else NUMBERS[options.dataset]
    target = target_folder(options.output, number, data.name, overwrite=options.overwrite)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
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
    # Only stores need tensorstore, which takes its time to be imported.
    from coarse2fine.convert.fafb import StoreOptions, find_fafb

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


if __name__ == "__main__":
    sys.exit(main())
