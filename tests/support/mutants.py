"""Draw some mutants of each module that `pyproject.toml` names and see which of them the tests let live.

There are thousands, so a random sample has to do; another seed draws another one. Verdicts stay in `mutants/`: a run
that was cut off goes on where it stopped, and after new tests only those mutants are tried again that had not died.
"""

from __future__ import annotations

import argparse
import ast
import random
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import accumulate
from math import ceil
from pathlib import Path

import mutmut.__main__ as tool
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, walk_mutatable_files
from mutmut.utils.format_utils import get_module_from_key, get_mutant_name
from mutmut.workers.isolation import ForkServerRunner

MUTATED = Path("mutants")  # mutmut's folder: each module there holds all its mutants
PROCESSES = 2


class NearestFirst(ForkServerRunner):
    """Runs the tests nearest to a mutant first, and those only for some time.

    mutmut runs all tests that execute the mutated function, in no order. Of code that every run passes through that
    is most of the suite, and the test that sees the change comes anywhere.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(PROCESSES, PytestRunner, {})
        self.seconds = seconds
        self.fresh = not (MUTATED / "mutmut-stats.json").exists()

    def submit(self, mutant_name: str, tests: list[str], cpu_time_limit: int, estimated_time: float) -> None:
        """Pass on the nearest of the tests, with a time limit that fits them."""
        tests = nearest(get_module_from_key(mutant_name), tests, state().duration_by_test, self.seconds)
        estimated_time = sum(state().duration_by_test[test] for test in tests)
        limit = (estimated_time + config().timeout_constant) * config().timeout_multiplier
        super().submit(mutant_name, tests, ceil(2 * limit), estimated_time)

    def run_clean_tests(self, tests: Sequence[str]) -> int:
        """Run the tests on the code as it is, unless they have just passed while their times were taken."""
        return 0 if self.fresh else super().run_clean_tests(tests)


def nearest(module: str, tests: Sequence[str], seconds_of: dict[str, float], seconds: float) -> list[str]:
    """Return the tests that fit into the time: the module's own, then its room's, then others; short ones first."""
    room, _, name = module.replace(".", "/").rpartition("/")
    own, beside = f"tests/{room}/test_{name}.py::", f"tests/{room}/"
    ordered = sorted(tests, key=lambda t: (not t.startswith(own), not t.startswith(beside), seconds_of[t], t))
    until = accumulate(seconds_of[test] for test in ordered)
    return [test for test, end in zip(ordered, until, strict=True) if end <= seconds] or ordered[:1]


def tells(original: str, mutant: str) -> bool:
    """Whether a mutant is worth its time: any test sees a value replaced by None, and a changed text is a message."""
    noise = any(mutant.count(word) > original.count(word) for word in ("None", "XX"))
    return not noise and mutant.lower() != original.lower()


def mutants(module: Path) -> list[str]:
    """Names of a module's mutants that are worth trying."""
    functions = [
        node for node in ast.walk(ast.parse((MUTATED / module).read_text())) if isinstance(node, ast.FunctionDef)
    ]
    bodies = {node.name: ast.unparse([*node.args.defaults, *node.body]) for node in functions}
    split = ((name, *name.rpartition("__mutmut_")) for name in bodies)
    return [
        get_mutant_name(module, name)
        for name, function, mark, number in split
        if mark and number.isdigit() and tells(bodies[f"{function}{mark}orig"], bodies[name])
    ]


def verdicts(module: Path) -> dict[str, str]:
    """What is known of a module's mutants so far."""
    data = SourceFileMutationData(path=module)
    data.load()
    return {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}


def report(drawn: dict[Path, list[str]]) -> None:
    """Print how the mutants of each room ended, and the names of those that did not die."""
    ends = {name: verdicts(module)[name] for module, names in drawn.items() for name in names}
    rooms: dict[Path, Counter[str]] = {}
    for module, names in drawn.items():
        rooms.setdefault(module.parent, Counter()).update(ends[name] for name in names)
    for room, counted in rooms.items():
        print(f"{room}: {counted.total()} drawn,", ", ".join(f"{n} {end}" for end, n in sorted(counted.items())))
    for name, end in ends.items():
        if end != "killed":
            print(f"{end}: {name}")


def main() -> None:
    """Run mutmut on the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=10, help="mutants of each module (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", default="*", help="only these, such as 'coarse2fine/large/*'")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of tests for each mutant (%(default)s); inf for all"
    )
    arguments = parser.parse_args()
    MUTATED.mkdir(exist_ok=True)
    copy_src_dir()
    copy_also_copy_files()
    tool.create_mutants(PROCESSES)
    drawn: dict[Path, list[str]] = {}
    for module in sorted(walk_mutatable_files()):
        if fnmatch(str(module), arguments.modules):
            names = mutants(module)
            chance = random.Random(f"{arguments.seed} {module}")
            drawn[module] = chance.sample(names, min(arguments.each, len(names)))
    alive = [
        name for module, names in drawn.items() for name in names if verdicts(module)[name] not in ("killed", "timeout")
    ]
    print(sum(map(len, drawn.values())), "mutants drawn,", len(alive), "to try")
    if alive:
        tool.get_mutant_runner = lambda _: NearestFirst(arguments.seconds)
        tool._run(alive, PROCESSES)
    report(drawn)


if __name__ == "__main__":
    main()
