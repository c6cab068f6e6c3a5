"""Studies: their files of results, which are gone on with, and the page made from them."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import import_benchmark

from coarse2fine.errors import C2FError, ConfigError

pretrain, page, results = map(import_benchmark, ("pretrain", "pretraining.page", "pretraining.results"))
Row, Setup = import_benchmark("pretraining.rows").Row, import_benchmark("pretraining.studies").Setup
load = results.load

VALUES = {"scratch": 0.5, "mae": 0.6}


class Toy:
    """A study that measures at once, and counts what it was asked for."""

    TITLE, ABOUT, BASELINES = "Toys", "Nothing is trained.", {"Dice": ("scratch",)}

    def __init__(self) -> None:
        self.trained: list[tuple[str, int]] = []
        self.most = 100

    def study(self, setup: Any) -> Iterator[Sequence[Any]]:
        for seed in setup.seeds:
            for method, value in VALUES.items():
                if not setup.has(method, "2", seed):
                    if len(self.trained) == self.most:
                        raise KeyboardInterrupt
                    self.trained.append((method, seed))
                    cases = (value + seed / 100, value)
                    yield [Row(method, "2", seed, "Dice", sum(cases) / 2, cases)]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A study, whatever name is asked for."""
    study = Toy()
    monkeypatch.setattr(results, "find", lambda name: study)
    monkeypatch.setattr(page, "find", lambda name: study)
    return study


def run(name: str, out: Path, seeds: int, **others: Any) -> Any:
    """Run a study, its folder beside its file."""
    return results.run(name, out, Setup(range(seeds), out.with_suffix(".work"), **others), "command")


def test_run__a_study_that_was_cut_off__goes_on_where_it_was(toy: Toy, tmp_path: Path) -> None:
    """What was measured is not measured again, and the file is that of a run in one go but for the time."""
    toy.most = 3
    with pytest.raises(KeyboardInterrupt):
        run("lungs", tmp_path / "a.json", 3)
    assert not load(tmp_path / "a.json").finished
    toy.most = 100
    cut = run("lungs", tmp_path / "a.json", 3)
    whole = run("lungs", tmp_path / "b.json", 3)
    assert len(toy.trained) == 6 + 6
    assert cut.finished
    assert cut.rows == whole.rows == load(tmp_path / "a.json").rows
    document = json.loads((tmp_path / "a.json").read_text())
    assert {"machine", "versions"} <= set(document["environment"])
    assert document["rows"][3]["gain"] == pytest.approx(0.1)


def test_run__more_seeds_than_before__adds_theirs(toy: Toy, tmp_path: Path) -> None:
    """A finished study can be widened."""
    run("lungs", tmp_path / "a.json", 2)
    widened = run("lungs", tmp_path / "a.json", 3)
    assert [seed for _, seed in toy.trained] == [0, 0, 1, 1, 2, 2]
    assert widened.finished


def test_run__a_file_of_other_steps_or_another_study__is_refused(toy: Toy, tmp_path: Path) -> None:
    """Rows of different trainings are not mixed; another file works."""
    run("lungs", tmp_path / "a.json", 1, steps=5)
    with pytest.raises(ConfigError, match=r"holds results of lungs with --steps 5, not of lungs with its own steps"):
        run("lungs", tmp_path / "a.json", 1)
    with pytest.raises(ConfigError, match=r"not of proxy with --steps 5\n  Name another file \(--out\)"):
        run("proxy", tmp_path / "a.json", 1, steps=5)
    with pytest.raises(ConfigError, match=r"not of lungs with --steps 5 and --bf16\n"):
        run("lungs", tmp_path / "a.json", 1, steps=5, bf16=True)
    assert run("proxy", tmp_path / "b.json", 1, steps=5).finished


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{}]}'])
def test_load__no_file_of_results__is_one_line(tmp_path: Path, text: str) -> None:
    """A file of something else is named."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.json holds no results of a study"):
        load(tmp_path / "a.json")


def test_main__a_study__writes_its_file_and_removes_what_was_between(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command runs, says each row, and leaves the file alone."""
    out = tmp_path / "lungs.json"
    assert pretrain.main(["--study", "lungs", "--out", str(out), "--seeds", "2"]) == 0
    assert "mae, 2 labels, seed 1: Dice 0.6050" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]
    assert load(out).command.startswith("python benchmarks/pretrain.py --study lungs --out ")
    assert pretrain.main(["--study", "lungs", "--out", str(out), "--steps", "2"]) == 1
    assert "error: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [(("--bf16",), "--bf16 is for hippocampus and product"), (("--jobs", "0"), "--jobs and --threads are at least 1")],
)
def test_main__options_that_cannot_be__are_refused(
    more: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything runs."""
    with pytest.raises(SystemExit):
        pretrain.main(["--study", "lungs", *more])
    assert says in capsys.readouterr().err


def test_page__results_of_one_study__has_its_rows_and_says_what_is_missing(toy: Toy, tmp_path: Path) -> None:
    """Means, gains and intervals are those of the file; the authors' figures stand apart; it can be checked."""
    run("lungs", tmp_path / "lungs.json", 3)
    target = tmp_path / "page.md"
    page.make_page(tmp_path, target, check=False)
    text = target.read_text()
    assert "| 2 | mae | 0.605 (0.600 to 0.610) | +0.100 | +0.100 to +0.100 | scratch | better |" in text
    assert "| 2 | scratch | 0.505 (0.500 to 0.510) |  |  |  |  |" in text
    assert "Not run yet: hippocampus, product, radiographs, records, proxy, explain." in text
    assert "The authors' figures: " in text
    assert "| MRM | 79.4 (79.2) | 84.0 (84.1) | 85.9 (86.0) |" in text
    page.make_page(tmp_path, target, check=True)
    target.write_text(text + "x")
    with pytest.raises(C2FError, match="is not up to date"):
        page.make_page(tmp_path, target, check=True)


@pytest.mark.parametrize(
    ("gain", "says"),
    [(0.1, "better"), (-0.1, "worse"), (0.0, "no difference shown")],
)
def test_gain_cells__above_below_and_around_0__say_so(gain: float, says: str) -> None:
    """A null is called one."""
    interval = (gain - 0.05, gain + 0.05)
    cells = page.gain_cells(SimpleNamespace(mean=gain, interval=interval, baseline="scratch"))
    assert cells == [f"{gain:+.3f}", f"{gain - 0.05:+.3f} to {gain + 0.05:+.3f}", "scratch", says]


def test_page__of_the_repository__is_made_from_its_results() -> None:
    """Nobody has edited the page, and no results are newer."""
    page.make_page(pretrain.RESULTS, pretrain.PAGE, check=True)


def test_cannot__commands_on_the_page__are_understood_by_their_programs() -> None:
    """What is told to those who have the data can be typed."""
    commands = [shlex.split(text) for text in re.findall(r"`(c2f-\w+ [^`]+)`", page.CANNOT) if " -o " in text]
    assert len(commands) == 5
    for name, *words in commands:
        importlib.import_module(f"coarse2fine.cli.{name.removeprefix('c2f-')}").build_parser().parse_args(words)
