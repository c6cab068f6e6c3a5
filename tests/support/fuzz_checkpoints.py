"""Loads many damaged checkpoints: ``python tests/support/fuzz_checkpoints.py --seeds 4000``; `make fuzz` does.

Prints how many were refused or loaded, and the seeds of all others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from checkpoint_fuzzing import make
from fuzzing import Outcome, outcomes
from tiny_models import write_model

_AT_ONCE = 100  # copies of the model folder that are on the disk
_LONGEST_MESSAGE = 1200


def main() -> int:
    """Returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description="Loads many damaged checkpoints.")
    parser.add_argument("--seeds", type=int, default=4000, help="how many (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    faults: dict[int, Outcome] = {}
    with tempfile.TemporaryDirectory() as place:
        pristine = write_model(Path(place) / "T__P__C")
        for start in range(options.first, options.first + options.seeds, _AT_ONCE):
            seeds = range(start, min(start + _AT_ONCE, options.first + options.seeds))
            with tempfile.TemporaryDirectory() as folder:
                found = outcomes("checkpoint_fuzzing:ours", [make(seed, Path(folder), pristine) for seed in seeds])
            counts.update(outcome.kind for outcome in found)
            faults |= {seed: one for seed, one in zip(seeds, found, strict=True) if _is_fault(one)}
    print("checkpoints", dict(counts), flush=True)  # noqa: T201
    for seed, outcome in faults.items():
        print(f"  {seed}: {outcome}", flush=True)  # noqa: T201
    return int(bool(faults))


def _is_fault(outcome: Outcome) -> bool:
    return outcome.kind not in ("read", "refused") or len(outcome.detail) > _LONGEST_MESSAGE


if __name__ == "__main__":
    sys.exit(main())
