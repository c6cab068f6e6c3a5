"""Reads many damaged image files: ``python tests/support/fuzz_images.py --seeds 4000``; `make fuzz` does.

Prints how many of each format were refused, or read as SimpleITK reads them, and the seeds of all others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from fuzzing import outcomes
from image_fuzzing import MAKERS


def main() -> int:
    """Returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description="Reads many damaged image files.")
    parser.add_argument("--seeds", type=int, default=4000, help="how many of each format (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--format", choices=MAKERS, action="append", help="only this format; may be repeated")
    options = parser.parse_args()
    failed = False
    for name in options.format or MAKERS:
        with tempfile.TemporaryDirectory() as folder:
            seeds = range(options.first, options.first + options.seeds)
            paths = [MAKERS[name](seed, Path(folder)) for seed in seeds]
            mine = dict(zip(paths, outcomes("image_fuzzing:ours", paths), strict=True))
            read = [path for path in paths if mine[path].kind == "read"]
            theirs = dict(zip(read, outcomes("image_fuzzing:simpleitk", read), strict=True))
        counts = Counter(outcome.kind for outcome in mine.values() if outcome.kind != "read")
        counts["equal"] = sum(mine[path] == theirs[path] for path in read)
        print(name, dict(counts), f"read otherwise: {len(read) - counts['equal']}", flush=True)  # noqa: T201
        for path, outcome in mine.items():
            if outcome.kind != "refused" and outcome != theirs.get(path):
                failed = True
                print(f"  {path.name}: {outcome}, SimpleITK: {theirs.get(path)}", flush=True)  # noqa: T201
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
