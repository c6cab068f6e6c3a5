"""Test cases of a data set with finer voxels, as scanners store them: speed grows with voxels that show nothing.

    python benchmarks/finer.py --dataset brain --factor 0.5 -o benchmarks/out/brain_half_mm
    python benchmarks/run.py --dataset brain_half_mm --rows nnunet one_stage accelerated

Images are interpolated linearly, labels take the nearest voxel, and the field of view stays as it is. A model works at
its own voxel size, so what it sees is nearly the same; reading, resampling and writing are what grows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from rich.console import Console

from benchmarks.common.machine import ROOT
from benchmarks.common.registry import exit_code, find_case_files, load_dataset
from coarse2fine.io import atomic_write, check_writable


def resample(image: sitk.Image, factor: float, interpolator: int) -> sitk.Image:
    """The same field of view in voxels whose edges are ``factor`` times as long, to within one voxel per axis."""
    spacing = np.array(image.GetSpacing())
    size = np.maximum(np.round(np.array(image.GetSize()) / factor), 1).astype(int)
    corner = image.TransformContinuousIndexToPhysicalPoint([(factor - 1) / 2] * image.GetDimension())
    finer = sitk.ResampleImageFilter()
    finer.SetSize(size.tolist())
    finer.SetOutputSpacing((spacing * factor).tolist())
    finer.SetOutputOrigin(corner)
    finer.SetOutputDirection(image.GetDirection())
    finer.SetInterpolator(interpolator)
    finer.SetUseNearestNeighborExtrapolator(True)  # the outermost centres lie half a voxel outside of the old ones
    result: sitk.Image = finer.Execute(image)
    return result


def write_finer(name: str, factor: float, data: Path | None, folder: Path, console: Console) -> None:
    """Write all test cases of a data set; files that are there stay.

    Raises:
        C2FError: If the data set or its cases are not there, or the folder cannot be written.
    """
    dataset = load_dataset(name)
    source = data or ROOT / dataset.data
    for case in find_case_files(dataset, data):
        if case.split != "test" or case.image is None:
            continue
        for file, interpolator in ((case.image, sitk.sitkLinear), (case.reference, sitk.sitkNearestNeighbor)):
            target = folder / file.relative_to(source)
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            check_writable(target, overwrite=False)
            finer = resample(sitk.ReadImage(str(file)), factor, interpolator)
            with atomic_write(target) as path:
                sitk.WriteImage(finer, str(path), useCompression=True)
            console.print(f"{target.name}: {' x '.join(map(str, finer.GetSize()))} voxels", highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, metavar="NAME")
    parser.add_argument("--factor", type=float, default=0.5, metavar="X", help="of the voxels' edges (%(default)s)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the data lie, if not where the file says")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="imagesTs and labelsTs")
    options = parser.parse_args(arguments)
    if not 0.1 <= options.factor < 1:
        parser.error("--factor is from 0.1 to below 1")
    console = Console(stderr=True)
    work = partial(write_finer, options.dataset, options.factor, options.data, options.out, console)
    return exit_code(work, console)


if __name__ == "__main__":
    sys.exit(main())
