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
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("canvas", "assignnet", "coarse2fine")

# Imports point only upwards in this list. A package's own name is its __init__, which comes after what it exports.
LAYERS = (
    "canvas.box",
    "canvas.binpack",
    "canvas.pack",
    "canvas.transfer",
    "canvas.union",
    "canvas",
    "assignnet.tree",
    "assignnet.problem",
    "assignnet.rules",
    "assignnet.outcomes",
    "assignnet.sums",
    "assignnet.plan",
    "assignnet.bound",
    "assignnet.instance",
    "assignnet.synthetic",
    "assignnet.oracle",
    "assignnet.scene",
    "assignnet.overlap",
    "assignnet.reward",
    "assignnet.env",
    "assignnet.network",
    "assignnet.supervised",
    "assignnet.agent",
    "assignnet.evaluate",
    "assignnet.imitation",
    "assignnet.policy",
    "assignnet.train",
    "assignnet",
    "coarse2fine.errors",
    "coarse2fine.text",
    "coarse2fine.signals",
    "coarse2fine.guard",
    "coarse2fine.clock",
    "coarse2fine.allocator",
    "coarse2fine.yamltree",
    "coarse2fine.yamlmodel",
    "coarse2fine.values",
    "coarse2fine.config",
    "coarse2fine.metrics",
    "coarse2fine.io.volume",
    "coarse2fine.io.owned",
    "coarse2fine.io.atomic",
    "coarse2fine.io.headers",
    "coarse2fine.io.turn",
    "coarse2fine.io.readers",
    "coarse2fine.io.fields",
    "coarse2fine.io.metaimage",
    "coarse2fine.io.nrrd",
    "coarse2fine.io.gipl",
    "coarse2fine.io.voxels",
    "coarse2fine.io.tiff",
    "coarse2fine.io.images",
    "coarse2fine.io.cases",
    "coarse2fine.io.lazy",
    "coarse2fine.io.layout",
    "coarse2fine.io.schema",
    "coarse2fine.io.tensors",
    "coarse2fine.io.contents",
    "coarse2fine.io.chunks",
    "coarse2fine.io.absence",
    "coarse2fine.io.units",
    "coarse2fine.io.scales",
    "coarse2fine.io.sights",
    "coarse2fine.io.presence",
    "coarse2fine.io.hdf5meta",
    "coarse2fine.io.hdf5",
    "coarse2fine.io.ngff",
    "coarse2fine.io.n5",
    "coarse2fine.io.precomputed",
    "coarse2fine.io.stores",
    "coarse2fine.io.labelstore",
    "coarse2fine.io.cremi",
    "coarse2fine.io",
    "coarse2fine.orient",
    "coarse2fine.region",
    "coarse2fine.resample",
    "coarse2fine.labels",
    "coarse2fine.archive",
    "coarse2fine.checkpoint",
    "coarse2fine.plans",
    "coarse2fine.nnunet",
    "coarse2fine.scan",
    "coarse2fine.view",
    "coarse2fine.sliding",
    "coarse2fine.bottleneck",
    "coarse2fine.components",
    "coarse2fine.instances",
    "coarse2fine.nms",
    "coarse2fine.heatmap",
    "coarse2fine.rois",
    "coarse2fine.coarse",
    "coarse2fine.grow",
    "coarse2fine.lean",
    "coarse2fine.instance_norm",
    "coarse2fine.writeback",
    "coarse2fine.cascade",
    "coarse2fine.fine",
    "coarse2fine.features",
    "coarse2fine.choose",
    "coarse2fine.thin",
    "coarse2fine.refine",
    "coarse2fine.report",
    "coarse2fine.tally",
    "coarse2fine.pipeline",
    "coarse2fine.large.lattice",
    "coarse2fine.large.window",
    "coarse2fine.large.territory",
    "coarse2fine.large.levels",
    "coarse2fine.large.work",
    "coarse2fine.large.tasks",
    "coarse2fine.large.connection",
    "coarse2fine.large.cluster",
    "coarse2fine.large.engine",
    "coarse2fine.large.cells",
    "coarse2fine.large.source",
    "coarse2fine.large.job",
    "coarse2fine.large.norm",
    "coarse2fine.large.segment",
    "coarse2fine.large.objects",
    "coarse2fine.large.output",
    "coarse2fine.large.report",
    "coarse2fine.large.run",
    "coarse2fine.large.command",
    "coarse2fine.large",
    "coarse2fine.demo.picture",
    "coarse2fine.demo",
    "coarse2fine.infer",
    "coarse2fine.cli",
    "coarse2fine.teach",
    "coarse2fine.lessons",
    "coarse2fine.training",
    "coarse2fine.train_cli",
    "coarse2fine.convert.rawdata",
    "coarse2fine.convert.files",
    "coarse2fine.convert.crops",
    "coarse2fine.convert.covid",
    "coarse2fine.convert.word",
    "coarse2fine.convert.cremi",
    "coarse2fine.convert.fafb",
    "coarse2fine.convert.command",
    "coarse2fine.convert.cli",
    "coarse2fine.convert",
    "coarse2fine",
)
# What a package may import besides the standard library and the layers above it; coarse2fine may import anything.
FOREIGN = {
    "canvas": {"numpy"},
    "assignnet": {"numpy", "torch", "safetensors", "h5py", "gymnasium", "stable_baselines3", "sb3_contrib"},
}
NNUNET = {"nnunetv2", "dynamic_network_architectures"}
# Where these can be imported depends on how torch was built (see docs/design.md, "Dependencies").
BROKEN = {"timm", "torchvision"}
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


def test_layers__every_module__is_listed_once() -> None:
    """The list above and the modules that exist are the same."""
    new = [name for name in MODULES if name not in LAYERS]
    gone = [name for name in LAYERS if name not in MODULES]
    assert not new, (
        f"no layer for {', '.join(new)}: put each into LAYERS in tests/test_layering.py, below all that it imports and "
        "above all that import it, and into the layout in docs/design.md; if there is no such place, the module "
        "belongs elsewhere or does two things"
    )
    assert not gone, f"no longer exists: {', '.join(gone)}; remove it from LAYERS and from docs/design.md"
    assert len(set(LAYERS)) == len(LAYERS)


@pytest.mark.parametrize("name", [name for name in LAYERS if name in MODULES])
def test_layers__any_module__imports_only_from_above(name: str) -> None:
    """No module imports one that stands below it in the list, not even inside of a function."""
    below = LAYERS[LAYERS.index(name) :]
    found = [f"line {line}: {target}" for line, target in imports(name, MODULES[name]) if target in below]
    assert not found, f"{name} imports what stands below it in LAYERS: {'; '.join(found)}"


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


def test_nnunet__only_its_own_module__imports_it() -> None:
    """nnU-Net's interfaces change between releases; one module has to follow them, and that one does use them."""
    users = {name for name in MODULES if offences(name, NNUNET)}
    assert users == {"coarse2fine.nnunet"}


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


def test_design_page__every_module__is_in_its_layout() -> None:
    """Whoever reads docs/design.md learns of every module."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    unknown = [name for name, path in MODULES.items() if path.name != "__init__.py" and f"{path.stem}.py" not in page]
    assert not unknown, f"missing in the layout of docs/design.md: {', '.join(unknown)}"
