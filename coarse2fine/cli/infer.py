"""``c2f-infer``: its options, and what commands do with errors. What it runs is imported when options are known."""

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

_UNITS = ("nm", "um", "mm")


_DEMO = {"demo", "compare", "output", "overwrite"}
_NAMES = {"overrides": "set"}  # options that are stored under another name


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="c2f-infer",
        description="Segment volumes with a coarse and a fine nnU-Net v2 model.",
        epilog="Example: c2f-infer -i scan.nii.gz -o labels.nii.gz -c covid --coarse-model DIR --fine-model DIR",
    )
    parser.add_argument(
        "-i",
        "--input",
        help="a volume, a folder with nnU-Net's CASE_0000 naming, a DICOM series (folder or .zip), or a store (below)",
    )
    parser.add_argument(
        "-o",
        "--output",
        help="the label file (.dcm: a DICOM segmentation), or a folder for files named after the cases",
    )
    parser.add_argument(
        "-c",
        "--config",
        help="a kit of c2f-prepare, a YAML file, or the name of a shipped one: covid, word, cremi, fafb",
    )
    parser.add_argument("--coarse-model", type=Path, metavar="DIR", help="folder of the low-resolution nnU-Net")
    parser.add_argument("--fine-model", type=Path, metavar="DIR", help="folder of the full-resolution nnU-Net")
    parser.add_argument(
        "--mode", choices=("accelerated", "two-stage", "one-stage"), help="one-stage is nnU-Net's plain sliding window"
    )
    parser.add_argument(
        "--deadline",
        metavar="TIME",
        help="have each volume's result after this time, as 30s, 5m or 1h, with what the coarse model says where the "
        "fine one does not get",
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps; of a folder also several, as cuda:0,cuda:1")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a setting, such as rois.threshold=0.1; may be repeated",
    )
    add_case_options(parser)
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="let checkpoints run code while they are loaded; only for sources that you trust like a program",
    )
    parser.add_argument("--demo", action="store_true", help="run on the shipped sample volume; -o names a folder")
    parser.add_argument("--compare", action="store_true", help="with --demo: also run nnU-Net's own predictor")
    add_store_options(parser)
    return add_common_options(parser)


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """Which cases are looked at, and where, and what is told of them."""
    parser.add_argument("--report", type=Path, metavar="FILE", help="write times, boxes, coverage and settings as JSON")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="write volume, place and brightness of every label as .csv or .tsv; with --instances of every object",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="show what was found, and where was looked, in an HTML file; for a folder an index, with a page for each "
        "case beside it",
    )
    parser.add_argument("--viewer", action="store_true", help="put the volume itself on the page, reduced to 20 MB")
    parser.add_argument(
        "--explain",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="show on the page what in the image spoke for a label where it was found (HiResCAM; see c2f-explain)",
    )
    parser.add_argument("--profile", action="store_true", help="say where the time went: seconds of each stage")
    replaced = parser.add_mutually_exclusive_group()
    replaced.add_argument("--overwrite", action="store_true", help="replace files that exist")
    replaced.add_argument("--skip-existing", action="store_true", help="leave out cases whose labels are there")
    parser.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="of a folder's cases, or a store's blocks, only each N-th, from the I-th on",
    )
    parser.add_argument(
        "--mask",
        metavar="FILE",
        help="look only where this is not 0: a file or store at any resolution; for a folder, one of files named after "
        "the cases",
    )


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """The options that count for volumes in stores."""
    group = parser.add_argument_group(
        "volumes larger than memory",
        "for HDF5 in CREMI's layout, zarr, OME-NGFF, N5 and neuroglancer precomputed, as folders or URLs; results end "
        "in .zarr or .hdf, or begin with precomputed://",
    )
    add = group.add_argument
    add("--region", metavar="Z0:Z1,Y0:Y1,X0:X1", help="only this part, in voxels or with a unit, as 0:2000nm,:,:")
    add(
        "--instances",
        action="store_true",
        help="number connected objects, across blocks; always so for .hdf. Of files: see --table",
    )
    add("--array", metavar="NAME", help="array inside of the store, such as volumes/raw")
    add("--spacing", type=_three, metavar="Z,Y,X", help="voxel size, where the store does not say it")
    add("--unit", choices=_UNITS, help="its unit")
    add("--axes", metavar="LETTERS", help="the array's axes in their order, where the store does not say them: tczyx")
    add("--channel", type=int, metavar="N", help="read only this channel, counted from 0")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, metavar="N", help="run on N processes of this machine (Dask)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="run on a Dask cluster, such as tcp://host:8786")
    add("--dashboard", action="store_true", help="with --workers: serve Dask's page to all users of this machine")
    add("--work", type=Path, metavar="DIR", help="folder that lets a killed run resume (default: OUTPUT.c2f-work)")
    add("--restart", action="store_true", help="give up what an earlier run left in the work folder")
    add(
        "--shards",
        nargs="?",
        const="",
        metavar="Z,Y,X",
        help="gather chunks of a .zarr result in fewer files, of 256 x 512 x 512 voxels or so many",
    )
    add("--neuroglancer", type=Path, metavar="FILE", help="write a state that shows image and result, as JSON")
    add("--block-timeout", metavar="TIME", help="with workers: give up a block after this time, as 90s, 10m or 1h")
    add("--dry-run", action="store_true", help="only say what it will take: blocks, bytes, memory, and hours")
    add("--skip-failed", action="store_true", help="finish without blocks that cannot be done, as background")


def _part(text: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 1/4")
    return int(first), int(count)


def _three(text: str) -> tuple[float, float, float]:
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers Z,Y,X") from error
    return z, y, x


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not options.demo and (options.input is None or options.output is None):
        parser.error("-i/--input and -o/--output are required (or use --demo)")
    if options.compare and not options.demo:
        parser.error("--compare is for --demo: leave it out, or add --demo")
    idle = [name for name, value in vars(options).items() if name not in _DEMO and value != parser.get_default(name)]
    if options.demo and idle:
        names = ", ".join("--" + _NAMES.get(name, name).replace("_", "-") for name in idle)
        parser.error(f"--demo has a volume, models and settings of its own: leave out {names}")

    def action(console: Console) -> None:
        from coarse2fine.cli.infer_run import run

        run(options, console)

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
