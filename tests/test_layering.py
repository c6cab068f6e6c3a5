"""Rules for the repository as a whole: who may import whom, pinned dependencies, and no paths of somebody's machine."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("canvas", "assignnet", "coarse2fine")

# Rooms are folders, modules that stand beside rooms, and what an __init__ gathers. Imports point only upwards in this
# list, or to a neighbour in the same room.
ROOMS = (
    "canvas",
    "canvas/__init__",
    "assignnet/choice",
    "assignnet/value",
    "assignnet/learn",
    "assignnet/__init__",
    "coarse2fine/errors",
    "coarse2fine/system",
    "coarse2fine/config",
    "coarse2fine/io",
    "coarse2fine/io/dicom",
    "coarse2fine/io/files",
    "coarse2fine/io/stores",
    "coarse2fine/io/__init__",
    "coarse2fine/resampling",
    "coarse2fine/nnunet",
    "coarse2fine/preprocessing",
    "coarse2fine/regions",
    "coarse2fine/measures",
    "coarse2fine/evaluation",
    "coarse2fine/coarse",
    "coarse2fine/promise",
    "coarse2fine/fine",
    "coarse2fine/selection",
    "coarse2fine/segmenter",
    "coarse2fine/one_stage",
    "coarse2fine/report",
    "coarse2fine/counts",
    "coarse2fine/look",
    "coarse2fine/reserve",
    "coarse2fine/pipeline",
    "coarse2fine/large/execution",
    "coarse2fine/large",
    "coarse2fine/page",
    "coarse2fine/networks",
    "coarse2fine/explain",
    "coarse2fine/demo",
    "coarse2fine/training",
    "coarse2fine/coarse_training",
    "coarse2fine/pretrain/records",
    "coarse2fine/pretrain",
    "coarse2fine/finetune",
    "coarse2fine/calibration",
    "coarse2fine/convert",
    "coarse2fine/cli",
    "coarse2fine/__init__",
    "benchmarks/common",
    "benchmarks/assets",
    "benchmarks/rows",
    "benchmarks/selection",
    "benchmarks/studies",
    "benchmarks/training",
    "benchmarks/page",
    "benchmarks/pretraining",
    "benchmarks/scaling",
    "benchmarks",
)
# What a package may import besides the standard library and the layers above it; coarse2fine may import anything.
FOREIGN = {
    "canvas": {"numpy"},
    "assignnet": {"numpy", "torch", "safetensors", "h5py", "gymnasium", "stable_baselines3", "sb3_contrib"},
}
NNUNET = {"nnunetv2", "dynamic_network_architectures"}
# Where these can be imported depends on how torch was built (see docs/design.md, "Dependencies").
BROKEN = {"timm", "torchvision"}
MOST_LINES, MOST_LINES_OF_TESTS = 400, 500
MOST_LINES_OF_FUNCTION = 60
# Folders of one machine, at the start of a path. Tests may say /tmp, which they never write to by name.
MACHINE_PATH = re.compile(r"(?<![\w.~\-})])/(work|home|root|Users|mnt|media|opt|srv|tmp|private)/")


def modules(package: str) -> dict[str, Path]:
    """The modules of a package by their full names."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = {name: path for package in PACKAGES for name, path in modules(package).items()}
EVERYTHING = MODULES | modules("benchmarks") | modules("tests")


@cache
def imports(name: str, path: Path) -> tuple[tuple[int, str], ...]:
    """Line and full name of everything that a module imports anywhere in its text, itself or its submodules."""
    return tuple(_imports(name, path))


def _imports(name: str, path: Path) -> Iterator[tuple[int, str]]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                # "from package import module" imports the module, "from module import name" the module too.
                member = f"{source}.{alias.name}"
                yield node.lineno, member if member in EVERYTHING else source


def offences(name: str, forbidden: set[str]) -> list[str]:
    """Imports of a module that begin with one of the forbidden packages."""
    path = EVERYTHING[name]
    found = ((line, target) for line, target in imports(name, path) if target.partition(".")[0] in forbidden)
    return [f"{path.relative_to(ROOT)}:{line} imports {target}" for line, target in found]


def repository_files() -> list[Path]:
    """Files under version control or about to be; skips where that cannot be known."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = [git, "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def room(name: str) -> str:
    """The room of a module."""
    path = EVERYTHING[name].relative_to(ROOT)
    alone = str(path.with_suffix(""))
    return alone if alone in ROOMS else str(path.parent)


HOUSE = MODULES | modules("benchmarks")


@pytest.mark.parametrize("name", HOUSE)
def test_rooms__any_module__imports_only_from_above(name: str) -> None:
    """No module imports one of a room that stands below its own, not even inside of a function."""
    own = room(name)
    assert own in ROOMS, (
        f"{own} is a new room: put it into ROOMS in tests/test_layering.py, below all that it imports and above "
        "all that import it, and into docs/design.md; where there is no such place, it does two things"
    )
    below = set(ROOMS[ROOMS.index(own) + 1 :])
    found = [
        f"line {line}: {target}"
        for line, target in imports(name, HOUSE[name])
        if target in HOUSE and room(target) in below
    ]
    assert not found, f"{name} of the room {own} imports what stands below it in ROOMS: {'; '.join(found)}"


def test_rooms__that_are_listed__exist() -> None:
    """Each is the room of some module, and is listed once."""
    assert sorted(ROOMS) == sorted({room(name) for name in HOUSE})


@pytest.mark.parametrize("name", EVERYTHING)
def test_modules__any_of_ours__are_short_and_so_are_their_functions(name: str) -> None:
    """What does not fit on a few screens is two things; docstrings of functions do not count.

    Modules of tests may be longer, as they are read test by test.
    """
    text = EVERYTHING[name].read_text(encoding="utf-8")
    long = [
        f"line {node.lineno}: {node.name} has {_length(node)} lines (at most {MOST_LINES_OF_FUNCTION})"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _length(node) > MOST_LINES_OF_FUNCTION
    ]
    assert not long, f"{name}: give parts of it names of their own: {'; '.join(long)}"
    lines, most = len(text.splitlines()), MOST_LINES if name in HOUSE else MOST_LINES_OF_TESTS
    assert lines <= most, f"{name} has {lines} lines (at most {most}): split it by what its parts know"


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from ``def`` to its end, without its docstring."""
    first, last = function.body[0], function.end_lineno
    assert last is not None
    assert first.end_lineno is not None
    documented = ast.get_docstring(function, clean=False) is not None
    return last - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if documented else 0)


def test_modules__of_one_room__import_each_other_in_one_direction() -> None:
    """There is an order of all modules in which each only imports what comes before it."""
    graph = {
        name: {target for _, target in imports(name, path) if target in HOUSE and target != name}
        for name, path in HOUSE.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(HOUSE)  # raises CycleError, which names a circle


@pytest.mark.parametrize("package", FOREIGN)
def test_package__geometry_and_choice__need_only_numpy(package: str) -> None:
    """Packing and selection can be used without PyTorch, nnU-Net or any file format."""
    used = {
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for name, path in modules(package).items()
        for line, target in imports(name, path)
        if target.partition(".")[0] not in sys.stdlib_module_names | FOREIGN[package] | set(PACKAGES)
    }
    assert not used


def test_nnunet__only_two_rooms__import_it() -> None:
    """nnU-Net's interfaces change between releases; the rooms that run and train its models have to follow them."""
    rooms = {"coarse2fine/nnunet", "coarse2fine/coarse_training"}
    assert {room(name) for name in MODULES if offences(name, NNUNET)} == rooms


KINDS = {"cpu", "cuda", "mps"}
"""Kinds of devices, as PyTorch names them."""


def of_kinds_of_devices(text: str) -> list[str]:
    """Lines of a module that ask whether a device is of some kind, or speak to a kind of device themselves."""
    return [f"{node.lineno} {ast.unparse(node)}" for node in ast.walk(ast.parse(text)) if _of_a_kind(node)]


def _of_a_kind(node: ast.AST) -> TypeGuard[ast.expr | ast.pattern]:
    if isinstance(node, ast.Compare):
        values = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
        return any(
            (isinstance(part, ast.Constant) and part.value in KINDS)
            or (isinstance(part, ast.Name) and part.id == "CPU")
            for part in values
        )
    if isinstance(node, ast.Attribute):
        spoken_to = node.attr in KINDS | {"cudnn"} and ast.unparse(node.value) in {"torch", "torch.backends"}
        return spoken_to or node.attr.removeprefix("is_") in KINDS - {node.attr}
    if isinstance(node, ast.Call):
        kind = next(iter(node.args), None)
        return ast.unparse(node.func) == "torch.autocast" and isinstance(kind, ast.Constant) and kind.value in KINDS
    return isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant) and node.value.value in KINDS


def test_devices__kinds_of_them__are_the_business_of_one_module() -> None:
    """Others ask it what they want to know of a device, so that the same code runs on all of them."""
    texts = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
    assert of_kinds_of_devices(texts.pop("coarse2fine.system.device"))
    assert [f"{name}:{line}" for name, text in texts.items() for line in of_kinds_of_devices(text)] == []


@pytest.mark.parametrize(
    "line",
    [
        'device.type == "cpu"',
        'device.type != "cuda"',
        'device.type in ("cuda", "mps")',
        'torch.device("cpu") == device',
        "device == CPU",
        "tensor.is_cpu",
        "torch.cuda.is_available()",
        "torch.cpu.get_capabilities()",
        "torch.backends.mps.is_available()",
        'torch.autocast("cpu", torch.bfloat16)',
        'match device.type:\n    case "mps": ...',
    ],
)
def test_devices__line_that_asks_for_a_kind__is_seen(line: str) -> None:
    """In any of the ways in which PyTorch can be asked; what only says where to compute is no question."""
    assert of_kinds_of_devices(line)
    assert not of_kinds_of_devices('torch.load(path, map_location="cpu"); torch.device("cpu"); is_host(device)')


def test_inference__any_of_its_commands__imports_nothing_that_explains_or_learns() -> None:
    """Not even inside of a function, nor by what it imports; but for the maps of ``--explain``, when they are made."""
    aside = {f"coarse2fine/{name}" for name in ("explain", "networks", "pretrain", "finetune")}
    waiting, seen, asked = ["coarse2fine.cli.infer_run", "coarse2fine.cli.predict_run"], set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        lines = MODULES[name].read_text(encoding="utf-8").splitlines()
        for number, target in imports(name, MODULES[name]):
            if target not in MODULES:
                continue
            if room(target) == "coarse2fine/explain" and lines[number - 1].startswith("    "):
                asked.add(name)
            else:
                waiting.append(target)
    assert "coarse2fine.fine.segment" in seen
    assert aside.isdisjoint({room(name) for name in seen})
    assert asked == {"coarse2fine.cli.cases"}


@pytest.mark.parametrize("folder", ["benchmarks", "tests"])
def test_scripts__benchmarks_and_tests__are_imported_by_nobody(folder: str) -> None:
    """What is not installed with the packages cannot be needed by them, nor by the other folder."""
    own = {folder, "conftest"} if folder == "tests" else {folder}
    outside = [name for name in EVERYTHING if name.partition(".")[0] != folder]
    assert [line for name in outside for line in offences(name, own)] == []


@pytest.mark.long
def test_import__without_timm_and_torchvision__succeeds() -> None:
    """Every module, and the predictor of nnU-Net that we compare with, can be imported where those two are broken."""
    names = [name for name in MODULES if not name.endswith("__main__")]
    names.append("nnunetv2.inference.predict_from_raw_data")
    code = f"import importlib, sys\nsys.modules.update(dict.fromkeys({sorted(BROKEN)}))\n"  # None: cannot be imported
    code += f"for name in {names}: importlib.import_module(name)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_constraints__every_dependency__is_pinned() -> None:
    """What pyproject.toml names, for running, developing and building, has an exact version in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    wanted += chain.from_iterable(project["project"]["optional-dependencies"].values())
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain_name(line) for line in lines if re.fullmatch(r"[\w.\-]+==[\w.+!]+", line)}
    missing = {plain_name(requirement) for requirement in wanted} - pinned
    assert not missing, f"pin {', '.join(sorted(missing))} in constraints.txt; CONTRIBUTING.md says how"


def plain_name(requirement: str) -> str:
    """The name of a package as all spellings of it have in common."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.\-]", requirement)[0]).lower()


def test_repository__text_files__name_no_path_of_one_machine() -> None:
    """Nothing depends on, or gives away, where somebody keeps files."""
    found = []
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
            match = MACHINE_PATH.search(line)
            if match and not (match[1] == "tmp" and path.is_relative_to(ROOT / "tests")):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert not found, f"use paths relative to the repository, or options: {'; '.join(found)}"


def test_design_page__every_room__is_on_its_map() -> None:
    """Whoever reads docs/design.md learns of every room."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    names = (name.removesuffix("/__init__").removeprefix("coarse2fine/").removeprefix("benchmarks/") for name in ROOMS)
    names = (name for name in names if name not in PACKAGES)
    unknown = [name for name in names if f"`{name}`" not in page]
    assert not unknown, f"missing on the map in docs/design.md: {', '.join(unknown)}"


def test_repository__commands_of_benchmarks_in_texts__exist() -> None:
    """Pages, docstrings and messages name files that are there; the changelog may speak of former ones."""
    unknown = []
    for path in repository_files():
        content = path.read_bytes()
        if path.name != "CHANGELOG.md" and b"\0" not in content:
            named = re.findall(r"\bbenchmarks/[\w/]+\.py\b", content.decode("utf-8", errors="replace"))
            unknown += [f"{path.relative_to(ROOT)}: {name}" for name in named if not (ROOT / name).is_file()]
    assert not unknown, f"no such file: {'; '.join(unknown)}"
