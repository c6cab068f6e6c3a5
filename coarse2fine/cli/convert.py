"""``c2f-convert``: its options. What it runs is imported when they are known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coarse2fine.cli.guard import guarded
from coarse2fine.cli.options import add_common_options

if TYPE_CHECKING:
    from rich.console import Console

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


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
        description="Turn a published data set into raw data for nnU-Net v2, or radiographs into a table.",
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
    _add_radiographs(names)
    return add_common_options(parser)


def _add_radiographs(names: Subparsers) -> None:
    """Data sets that become tables."""

    def add_dataset(name: str, about: str, source: str) -> argparse.ArgumentParser:
        parser = names.add_parser(
            name, help=about, description=f"{about}, as a table for c2f-pretrain and c2f-finetune"
        )
        parser.add_argument("source", type=Path, metavar="SOURCE", help=source)
        parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of table.csv")
        return parser

    def add_labels(parser: argparse.ArgumentParser) -> None:
        uncertain = "what labels are of which the report is not sure (%(default)s)"
        parser.add_argument("--uncertain", choices=("zeros", "ones"), default="zeros", help=uncertain)
        parser.add_argument("--frontal", action="store_true", help="frontal views only")

    mimic = add_dataset("mimic-cxr", "MIMIC-CXR-JPG: radiographs, reports, labels", "folder with files and the tables")
    add_labels(mimic)
    mimic.add_argument("--reports", type=Path, metavar="DIR", help="folder whose files hold reports (SOURCE)")
    nih = add_dataset("chestxray14", "NIH ChestX-ray14: radiographs, labels", "folder with Data_Entry_2017.csv")
    nih.add_argument("--no-split", action="store_true", help="leave out the official split")
    add_labels(add_dataset("chexpert", "CheXpert: radiographs, labels", "folder with train.csv"))
    add_dataset("siim-acr", "SIIM-ACR: radiographs, masks of pneumothorax", "folder with train-rle.csv")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)

    def action(console: Console) -> None:
        from coarse2fine.cli.convert_run import convert

        convert(options, console)

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
