"""Draw some mutants of each module that `pyproject.toml` names and see which of them the tests let live.

There are thousands, so a random sample has to do; another seed draws another one.
"""

from __future__ import annotations

import argparse
import ast
import random
from fnmatch import fnmatch
from pathlib import Path

from mutmut.__main__ import _run, create_mutants
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, walk_mutatable_files
from mutmut.utils.format_utils import get_mutant_name

MUTATED = Path("mutants")  # mutmut's folder: each module there holds all its mutants
PROCESSES = 2


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


def main() -> None:
    """Run mutmut on the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=10, help="mutants of each module (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", default="*", help="only these, such as 'coarse2fine/large/*'")
    arguments = parser.parse_args()
    MUTATED.mkdir(exist_ok=True)
    copy_src_dir()
    copy_also_copy_files()
    create_mutants(PROCESSES)
    drawn = []
    for module in sorted(walk_mutatable_files()):
        if fnmatch(str(module), arguments.modules):
            names = mutants(module)
            drawn += random.Random(f"{arguments.seed} {module}").sample(names, min(arguments.each, len(names)))
    print(len(drawn), "mutants drawn")  # noqa: T201
    _run(drawn, PROCESSES)


if __name__ == "__main__":
    main()
