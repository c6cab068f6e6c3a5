"""What all commands have in common: how fast they answer, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from rich.console import Console

import coarse2fine
from coarse2fine.cli.guard import EXIT_ERROR, EXIT_INTERRUPTED, guarded
from coarse2fine.errors import ConfigError

ROOT = Path(coarse2fine.__file__).parents[1]
COMMANDS = tuple(
    f"coarse2fine.cli.{name}"
    for name in ("infer", "prepare", "predict", "train", "pretrain", "finetune", "convert", "explain")
)
WORDS = [(module, "--help") for module in COMMANDS] + [
    *((module, "--version") for module in COMMANDS),
    ("coarse2fine.cli.infer", "--no-such-option"),
    ("coarse2fine.cli.convert", "fafb", "--help"),
]
# What an interpreter loads by itself differs from one installation to the next, so only what came later counts.
IMPORTED = """
import importlib, json, sys
before = set(sys.modules)
try:
    importlib.import_module(sys.argv.pop(1)).main()
except SystemExit as error:
    print(json.dumps([error.code, sorted(set(sys.modules) - before)]), file=sys.stderr)
"""


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_main__only_options__imports_nothing_large(words: tuple[str, ...]) -> None:
    """Help, version and slips of the pen are answered by the standard library alone: PyTorch takes seconds."""
    done = subprocess.run([sys.executable, "-c", IMPORTED, *words], cwd=ROOT, capture_output=True, text=True)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == (2 if "--no-such-option" in words else 0)
    found = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert found == {"coarse2fine"}
    assert words[-1] != "--help" or done.stdout.startswith("usage: ")


@pytest.mark.parametrize("module", COMMANDS)
def test_main__completion__completes_options_choices_and_files_in_bash(module: str, tmp_path: Path) -> None:
    """As bash does it when the script has been read."""
    done = subprocess.run([sys.executable, "-m", module, "--print-completion", "bash"], capture_output=True, text=True)
    assert done.returncode == 0
    assert not done.stderr
    (tmp_path / "script").write_text(done.stdout)
    (tmp_path / "kit_of_mine").mkdir()
    name = f"c2f-{module.rpartition('.')[2]}"

    def complete(*words: str) -> set[str]:
        function = f"_shtab_{name.replace('-', '_')}"
        given = " ".join(f"'{word}'" for word in (name, *words))
        line = f'COMP_WORDS=({given}); COMP_CWORD={len(words)}; {function}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        command = ["bash", "-c", f"source ./script; {line}"]
        return set(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout.split())

    assert complete("--vers") == {"--version"}
    if module.endswith("infer"):
        assert complete("--mode", "t") == {"two-stage"}
    path = {"infer": ["-c"], "predict": ["--kit"], "convert": ["covid", "-o"]}.get(module.rpartition(".")[2], ["-o"])
    assert "kit_of_mine" in complete(*path, "kit")
    wrong = subprocess.run([sys.executable, "-m", module, "--print-completion", "fish"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "choose from" in wrong.stderr


def test_command__behind_a_link_that_is_named_as_nnunets__answers(tmp_path: Path) -> None:
    """For programs that can be told no other name."""
    link = tmp_path / "nnUNetv2_predict"
    link.symlink_to(Path(sys.executable).with_name("c2f-predict"))
    done = subprocess.run([link, "--help"], capture_output=True, text=True)
    assert done.stdout.startswith("usage: c2f-predict")


def test_commands__installed_names__are_these() -> None:
    """No command is left out of the test above."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(project["scripts"].values()) == sorted(f"{module}:main" for module in COMMANDS)
    assert all(callable(import_module(module).main) for module in COMMANDS)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (None, 0, ""),
        (ConfigError("bad \x1b[2J", "Mend it."), EXIT_ERROR, "error: bad \\x1b[2J\n  Mend it.\n"),
        (KeyboardInterrupt(), EXIT_INTERRUPTED, "interrupted: "),
        (PermissionError(13, "Permission denied", "x"), EXIT_ERROR, "error: [Errno 13] Permission denied: 'x'\n  "),
        (MemoryError(), EXIT_ERROR, "error: out of memory\n  Check that the spacing"),
        (torch.OutOfMemoryError("CUDA"), EXIT_ERROR, "error: the GPU's memory is full\n  Use a GPU that has more"),
        (RuntimeError("MPS backend out of memory"), EXIT_ERROR, "error: the GPU's memory is full\n  Use a GPU"),
    ],
)
def test_guarded__any_end__exit_code_and_words(
    error: BaseException | None, code: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Errors of users and of their machines end in a line and a remedy."""

    def action(console: Console) -> None:
        assert console.stderr
        if error:
            raise error

    assert guarded(action) == code
    assert capfd.readouterr().err.startswith(says)


def test_guarded__a_bug__is_not_hidden() -> None:
    """What no user can mend keeps its traceback."""

    def action(console: Console) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        guarded(action)
