"""Damaged files, and readers in processes of their own, so that one that crashes or never returns is seen.

A reader is a function of a path that returns a text which says all that was read, such as a hash of it, and raises a
C2FError for what it refuses. ``python tests/support/fuzzing.py MODULE:FUNCTION`` is such a process: it takes
paths, one a line, and answers each in one line.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coarse2fine.errors import C2FError

ROOT = Path(__file__).parents[2]
MEMORY = 8 << 30  # bytes of address space that a reader may ask for, libraries included
_INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Kind = Literal["read", "refused", "traceback", "crash", "hang"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file.

    Attributes:
        kind: "read"; "refused" with one clear error; or a fault.
        detail: What was read, the error, the traceback, or the signal.
    """

    kind: Kind
    detail: str


def outcomes(reader: str, paths: Sequence[Path], limit_s: float = 10) -> list[Outcome]:
    """What a reader makes of each path.

    Args:
        reader: MODULE:FUNCTION; the module lies in ``tests`` or in the packages.
        paths: Files or folders.
        limit_s: Time for one of them, and for a process to start.
    """
    results: list[Outcome] = []
    while len(results) < len(paths):
        results += _one_process(reader, paths[len(results) :], limit_s)
    return results


def damaged(content: bytes, rng: random.Random, head: int) -> bytes:
    """The bytes of a file with one to three places of the first ``head`` bytes changed, or cut short."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        if not data:
            break
        place, size = rng.randrange(min(head, len(data))), rng.choice((1, 2, 4))
        match rng.randrange(7):
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1 | 2:
                value = rng.choice(_INTERESTING) & ((1 << 8 * size) - 1)
                data[place : place + size] = value.to_bytes(size, rng.choice(("little", "big")))
            case 3:
                data[place : place + size] = rng.randbytes(size)
            case 4:
                del data[place : place + rng.choice((1, 2, 8, 64))]
            case 5:
                data[place:place] = rng.randbytes(rng.choice((1, 2, 8, 64)))
            case _:
                other = rng.randrange(min(head, len(data)))
                data[place : place + 8] = data[other : other + 8]
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.05 else data)


@contextmanager
def _silent() -> Iterator[int]:
    """Whatever libraries print goes nowhere; yields a descriptor of the true standard output."""
    answers, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    yield answers


def _one_process(reader: str, paths: Sequence[Path], limit_s: float) -> list[Outcome]:
    """Outcomes of the first paths, up to the first one that ends the process."""
    results: list[Outcome] = []
    command = [sys.executable, str(Path(__file__)), reader]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support"))),
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdin
        assert child.stdout
        try:
            if child.stdout.readline() != "ready\n":
                raise RuntimeError(f"{reader} does not start")
            for path in paths:
                child.stdin.write(f"{path}\n")
                child.stdin.flush()
                if not select.select([child.stdout], [], [], limit_s)[0]:
                    child.kill()
                    return [*results, Outcome("hang", f"more than {limit_s} s")]
                if not (line := child.stdout.readline()):
                    return [*results, Outcome("crash", _ending(child.wait()))]
                results.append(Outcome(**json.loads(line)))
        except BrokenPipeError:
            return [*results, Outcome("crash", _ending(child.wait()))]
        finally:
            child.kill()
    return results


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _serve(name: str) -> None:
    """Answers paths from standard input until it ends."""
    module, function = name.split(":")
    reader = getattr(importlib.import_module(module), function)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with _silent() as answers:
        os.write(answers, b"ready\n")
        for line in sys.stdin:
            try:
                outcome = {"kind": "read", "detail": reader(Path(line.rstrip("\n")))}
            except C2FError as error:
                outcome = {"kind": "refused", "detail": str(error)}
            except BaseException:
                outcome = {"kind": "traceback", "detail": traceback.format_exc()[-2000:]}
            os.write(answers, (json.dumps(outcome) + "\n").encode())


if __name__ == "__main__":
    _serve(sys.argv[1])
