"""Reads many damaged DICOM series: ``python tests/support/fuzz_dicom.py --seeds 1000``; `make fuzz` does.

Prints how many were refused or read, and the seeds of all others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from dicom_fuzzing import make_dicom
from fuzzing import outcomes


def main() -> int:
    """Returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description="Reads many damaged DICOM series.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds = range(options.first, options.first + options.seeds)
        paths = [make_dicom(seed, Path(folder)) for seed in seeds]
        found = dict(zip(paths, outcomes("dicom_fuzzing:ours", paths), strict=True))
        read = [path for path, outcome in found.items() if outcome.kind == "read" and path.is_dir()]
        theirs = outcomes("dicom_fuzzing:simpleitk", read)
    # GDCM leaves out files and ignores spacing where the class of an object is unknown to it: no fault of ours.
    other = sum(one.kind == "read" and one != found[path] for path, one in zip(read, theirs, strict=True))
    counts = Counter(outcome.kind for outcome in found.values())
    print("DICOM", dict(counts), f"read otherwise: {other}", flush=True)  # noqa: T201
    faults = {path: outcome for path, outcome in found.items() if outcome.kind not in ("read", "refused")}
    for path, outcome in faults.items():
        print(f"  {path.name}: {outcome}", flush=True)  # noqa: T201
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
