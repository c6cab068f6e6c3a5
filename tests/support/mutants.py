"""Draw some mutants of the modules that `pyproject.toml` names and see which of them the tests let live.

There are thousands, which take days, so a random sample has to do, by default one that takes less than an hour on two
cores; another seed draws another one. Verdicts stay in `mutants/`: a run that was cut off goes on where it stopped, and
after new tests only those mutants are tried again that had not died.
"""

from __future__ import annotations

import argparse
import ast
import random
from collections import Counter
from collections.abc import Iterable, Sequence
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


def verdicts(modules: Iterable[Path]) -> dict[str, str]:
    """What is known of the modules' mutants so far."""
    known = {}
    for module in modules:
        data = SourceFileMutationData(path=module)
        data.load()
        known |= {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
    return known


def report(drawn: Sequence[tuple[Path, str]]) -> None:
    """Print how the mutants of each room ended, all together, and the names of those that did not die."""
    known = verdicts({module for module, _ in drawn})
    ends = {name: known[name] for _, name in drawn}
    rooms: dict[str, Counter[str]] = {}
    for module, name in drawn:
        for room in (str(module.parent), "all"):
            rooms.setdefault(room, Counter())[ends[name]] += 1
    for name, end in ends.items():
        if end != "killed":
            print(f"{end}: {name}")
    for room, counted in sorted(rooms.items(), key=lambda pair: pair[0] == "all"):
        print(f"{room}: {counted.total()} tried,", ", ".join(f"{n} {end}" for end, n in sorted(counted.items())))


def main() -> None:
    """Run mutmut on the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=80, help="how many mutants (%(default)s)")
    parser.add_argument("--all", action="store_true", help="all mutants, which takes days")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", default="*", help="only of these, such as 'coarse2fine/large/*'")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of tests for each mutant (%(default)s); inf for all tests"
    )
    arguments = parser.parse_args()
    MUTATED.mkdir(exist_ok=True)
    copy_src_dir()
    copy_also_copy_files()
    tool.create_mutants(PROCESSES)
    modules = [module for module in sorted(walk_mutatable_files()) if fnmatch(str(module), arguments.modules)]
    drawn = [(module, name) for module in modules for name in mutants(module)]
    if not arguments.all:
        drawn = random.Random(arguments.seed).sample(drawn, min(arguments.number, len(drawn)))
    known = verdicts(modules)
    alive = [name for _, name in drawn if known[name] not in ("killed", "timeout")]
    print(len(drawn), "mutants drawn,", len(alive), "to try")
    if alive:
        tool.get_mutant_runner = lambda _: NearestFirst(arguments.seconds)
        tool._run(alive, PROCESSES)
    report(drawn)


if __name__ == "__main__":
    main()
