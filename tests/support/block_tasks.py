"""Tasks that workers of a cluster can import, and a program that runs them: something to kill."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coarse2fine.errors import C2FError, OutputError
from coarse2fine.large.execution.engine import on_cluster, run_phase
from coarse2fine.large.execution.manifest import Manifest
from coarse2fine.large.execution.work import open_work
from coarse2fine.system.signals import exit_code, stoppable
from coarse2fine.system.timing import Run

MANIFEST = Manifest({"step": 1}, {"name": "volume"}, {"coarse": "1a2b"}, "1.0", {"block": [64, 64, 64]})


@dataclass(frozen=True)
class Square:
    """Writes the square of a block's number to a file, and notes who began it; block ``at`` has some trouble."""

    out: Path
    trouble: str = ""
    at: int = 3

    def __call__(self, key: tuple[int, ...], run: Run) -> dict[str, Any]:
        (number,) = key
        note = self.out / f"{number}.begun"
        with note.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        if number == self.at:
            self.suffer(note.read_text().split())
        (self.out / f"{number}.txt").write_text(str(number**2))
        environment = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
        return {"square": number**2, "pid": os.getpid(), "torch": "torch" in sys.modules, **environment}

    def suffer(self, begun: list[str]) -> None:
        if self.trouble == "fails":
            raise ValueError("bad block")
        if self.trouble == "fails on the first worker" and begun[0] == str(os.getpid()):
            raise ValueError("bad worker")
        if self.trouble == "disk full":
            raise OutputError("cannot write labels: No space left on device", "Free some.")
        if self.trouble == "killed" or (self.trouble == "killed once" and len(begun) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        while self.trouble == "waits" and not (self.out / "go").exists():
            time.sleep(0.02)


def main(work: str, out: str, count: str, *scheduler: str) -> int:
    """Squares ``count`` numbers on two workers or a scheduler; the last waits for a file named ``go``."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
    task = Square(Path(out), "waits", int(count) - 1)
    keys = [(number,) for number in range(int(count))]
    try:
        with (
            stoppable(),
            open_work(Path(work), MANIFEST) as folder,
            on_cluster(scheduler=scheduler[0]) if scheduler else on_cluster(workers=2) as engine,
        ):
            _, failures = run_phase(engine, folder, "square", task, keys, progress=lambda done, total: None)
    except C2FError as error:
        code, message = 1, str(error)
    except KeyboardInterrupt as stop:
        code, message = exit_code(getattr(stop, "number", signal.SIGINT)), "interrupted"
    else:
        code, message = 0, f"{len(failures)} failures"
    sys.stdout.write(f"{message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
