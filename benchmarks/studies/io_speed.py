"""How long reading a volume and writing a label map take: SimpleITK, nibabel, other gzip libraries, and ours.

    python benchmarks/studies/io_speed.py --volume VOLUME.nii.gz

The candidates take turns, so that a busy machine slows all of them alike, and medians are reported. zlib-ng takes part
if it is installed (``pip install zlib-ng``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import SimpleITK as sitk
from isal import igzip_threaded, isal_zlib

from coarse2fine.io import atomic_write, read_volume, write_labels

try:
    zlib_ng: ModuleType | None = import_module("zlib_ng.zlib_ng")
except ImportError:
    zlib_ng = None

Job = Callable[[], object]


def main() -> None:
    """Parses the command line, runs the tables that it asks for, prints them and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volume", type=Path, required=True, help="image to read (.nii.gz)")
    parser.add_argument("--labels", type=Path, help="label map to write again (.nii.gz)")
    parser.add_argument("--repeat", type=int, default=9, help="runs of each candidate (default: 9)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {"read": timed(readers(options.volume), options.repeat)}
        results["gunzip only"] = timed(gunzippers(options.volume.read_bytes()), options.repeat)
        if options.labels:
            jobs = writers(options.labels, Path(folder))
            results["write labels"] = timed(jobs, options.repeat)
            for name, row in results["write labels"].items():
                row["bytes"] = target(Path(folder), name).stat().st_size
    for title, rows in results.items():
        print(f"\n{title:34}{'median s':>10}{'min s':>10}{'bytes':>12}")
        for name, row in rows.items():
            print(f"  {name:32}{row['median_s']:10.4f}{row['min_s']:10.4f}{row.get('bytes', ''):>12}")
    if options.out:
        options.out.write_text(json.dumps(results, indent=2))


def readers(volume: Path) -> dict[str, Job]:
    """Ways from a file to an array."""
    name = str(volume)
    return {
        "SimpleITK, array": lambda: sitk.GetArrayFromImage(sitk.ReadImage(name)),
        "SimpleITK, image only": lambda: sitk.ReadImage(name),
        "nibabel": lambda: np.asanyarray(nibabel.Nifti1Image.from_filename(name).dataobj),
        "coarse2fine": lambda: read_volume([volume]),
    }


def gunzippers(packed: bytes) -> dict[str, Job]:
    """Ways to unpack a gzip file in memory, without doing anything with the result."""

    def threaded() -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(packed)
            file.flush()
            with igzip_threaded.open(file.name, "rb") as stream:
                while stream.read(1 << 20):
                    pass

    jobs: dict[str, Job] = {
        "zlib": lambda: zlib.decompress(packed, 31),
        "isal": lambda: isal_zlib.decompress(packed, 31),
        "isal, threaded": threaded,
    }
    if zlib_ng is not None:
        jobs["zlib-ng"] = partial(zlib_ng.decompress, packed, 31)
    return jobs


def writers(labels: Path, folder: Path) -> dict[str, Job]:
    """Ways from labels in memory to a file; the atomic ones wait until it is on the disk and then rename it."""
    image = sitk.Cast(sitk.ReadImage(str(labels)), sitk.sitkUInt8)
    volume = read_volume([labels])
    voxels = volume.channels[0].astype(np.uint8)
    affine = nibabel.Nifti1Image.from_filename(labels).affine

    def pack(name: str, compress: Callable[[memoryview], bytes]) -> Job:
        return lambda: target(folder, name).write_bytes(compress(voxels.data.cast("B")))

    def atomically() -> None:
        with atomic_write(target(folder, "SimpleITK, atomic")) as temp:
            sitk.WriteImage(image, str(temp), True)

    def threaded() -> None:
        with igzip_threaded.open(target(folder, "isal, threaded"), "wb", 1, threads=2, block_size=1 << 22) as stream:
            stream.write(voxels.data.cast("B"))

    jobs: dict[str, Job] = {
        "SimpleITK": lambda: sitk.WriteImage(image, str(target(folder, "SimpleITK")), True),
        "nibabel": lambda: nibabel.Nifti1Image(voxels.T, affine).to_filename(target(folder, "nibabel")),
        "SimpleITK, atomic": atomically,
        "coarse2fine, atomic": lambda: write_labels(voxels, volume.grid, target(folder, "coarse2fine, atomic")),
        "isal level 1": pack("isal level 1", partial(isal_zlib.compress, level=1, wbits=31)),
        "isal level 3": pack("isal level 3", partial(isal_zlib.compress, level=3, wbits=31)),
        "isal, threaded": threaded,
        "zlib level 1": pack("zlib level 1", partial(zlib.compress, level=1, wbits=31)),
    }
    if zlib_ng is not None:
        for level in (2, 6):
            name = f"zlib-ng level {level}"
            jobs[name] = pack(name, partial(zlib_ng.compress, level=level, wbits=31))
    return jobs


def target(folder: Path, name: str) -> Path:
    """The file that a writer of this name writes."""
    return folder / f"{name}.nii.gz"


def timed(jobs: dict[str, Job], repeat: int) -> dict[str, dict[str, float]]:
    """Seconds per run of each job; the jobs alternate, and their first run does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeat + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: {"median_s": statistics.median(times), "min_s": min(times)} for name, times in seconds.items()}


if __name__ == "__main__":
    main()
