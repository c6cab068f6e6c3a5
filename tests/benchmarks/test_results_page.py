"""The page of benchmark results: made-up numbers in, tables and pictures out."""

from __future__ import annotations

import doctest
import json
import re
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_rows import record, write
from conftest import benchmark_module, import_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coarse2fine.errors import C2FError

README = b"# A tool\r\n\nbefore \xff\n<!-- results: begin -->\nold\n<!-- results: end -->\r\nafter, with no line end"


page = benchmark_module("results_page")
findings = benchmark_module("page.findings")
plots = benchmark_module("page.plots")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of two data sets, experiments, and a folder that is no data set."""
    ours = record("accelerated", 2.0, 0.7, bound_s=1.0, boxes={"selected": 60}, fill=0.5, agreement=0.9, canvases=3)
    write(
        tmp_path / "results", "em", record("nnunet", 8.0, 0.65, agreement=1.0), record("masked_tiles", 5.0, 0.6), ours
    )
    write(tmp_path / "results", "lung", record("nnunet", 80.0, 0.1), record("accelerated", 1.0, 0.8, title="a | b"))
    put_experiment(tmp_path / "results" / "em" / "experiments" / "capacity.json", 30)
    (tmp_path / "results" / "assign").mkdir()
    (tmp_path / "results" / "assign" / "em.json").write_text("{}")
    (tmp_path / "README.md").write_bytes(README)
    return tmp_path


def put_experiment(file: Path, count: int, **more: Any) -> None:
    """An experiment's rows, numbered, with a column that never changes, and its picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"case": "a", "norm": "case", "capacity": at, "dice": 0.5, "total_s": 1.25 * at, "seen": [1]}
        for at in range(count)
    ]
    file.write_text(
        json.dumps({"experiment": file.stem, "title": "How many share", "case": "a", "repeat": 3, "rows": rows} | more)
    )
    for ending in (".png", "_case.jpg"):
        file.with_name(f"{file.stem}{ending}").write_bytes(b"")


@pytest.fixture
def call(page: ModuleType, folder: Path) -> Callable[..., int]:
    def run(*more: str) -> int:
        files = {"--results": folder / "results", "--page": folder / "RESULTS.md", "--readme": folder / "README.md"}
        return int(page.main([str(text) for pair in files.items() for text in pair] + list(more)))

    return run


def found_checks(
    findings: ModuleType, *rows: dict[str, Any], name: str = "ms", quality: str = "dice"
) -> dict[str, Any]:
    """Checks of made-up rows by kind."""
    return {check.kind: check for check in findings.checks(findings.summarise(name, quality, rows))}


@pytest.mark.parametrize("name", ["page.findings", "page.tables"])
def test_examples__in_docstrings__hold(name: str) -> None:
    """Pytest does not look for them in benchmarks."""
    found = doctest.testmod(import_benchmark(name))
    assert found.attempted
    assert not found.failed


@settings(deadline=None)
@given(st.floats(1e-4, 999))
def test_significant__any_number__keeps_three_digits(value: float) -> None:
    """It reads as the number rounded to three digits, without an exponent."""
    text = import_benchmark("page.findings").significant(value)
    assert float(text) == float(f"{value:.2e}")
    assert "e" not in text
    assert len(text.replace(".", "").lstrip("0")) == 3


def test_summarise__several_cases__means_over_those_that_nnunet_has(findings: ModuleType) -> None:
    """Times and qualities are means, memory the highest; training cases and half-measured rows are left out."""
    rows = [
        record(name, seconds, score, case=case, trained_on=case == "t", peak_rss_mb=memory)
        for name, case, seconds, score, memory in (
            ("nnunet", "a", 10.0, 0.5, 100.0), ("nnunet", "b", 30.0, 0.7, 300.0), ("nnunet", "t", 999.0, 1.0, 999.0),
            ("accelerated", "a", 1.0, 0.6, 50.0), ("accelerated", "b", 7.0, 0.9, 40.0),
            ("two_stage", "b", 1.0, 1.0, 1.0),
        )
    ]  # fmt: skip
    summary = findings.summarise("ms", "dice", rows)
    ours = summary.find("accelerated")
    assert summary.cases == ("a", "b")
    assert (ours["total_s"], ours["ratio"], ours["dice"], ours["peak_rss_mb"]) == (4.0, 5.0, 0.75, 50.0)
    assert summary.incomplete == ("two_stage",)
    assert findings.summarise("ms", "dice", [one for one in rows if one["case"] == "t"]).trained_on


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=6))
def test_front__any_rows__are_those_that_none_beats(points: list[tuple[int, int]]) -> None:
    """As brute force finds it; of rows that tie in both, all are beaten by each other."""
    findings = import_benchmark("page.findings")
    summary = findings.summarise("ms", "dice", [record(str(at), float(s), q / 10) for at, (s, q) in enumerate(points)])
    wanted = {
        str(at)
        for at, (seconds, score) in enumerate(points)
        if not any(s <= seconds and q >= score for other, (s, q) in enumerate(points) if other != at)
    }
    assert {row["row"] for row in findings.front(summary)} == wanted


@pytest.mark.parametrize(
    ("seconds", "score", "wanted"),
    [
        (4.0, 0.6, ["dominates", "2.00x", "+0.100", "no"]),
        (4.0, 0.7004, ["dominates", "2.00x", "-0.000", "no"]),
        (1.0, 0.8, ["loses", "0.500x", "-0.100", "yes"]),
        (1.0, 0.7, ["loses", "0.500x", "+0.000", "yes"]),
        (4.0, 0.9, ["trades", "2.00x", "-0.200", "yes"]),
        (1.0, 0.5, ["trades", "0.500x", "+0.200", "yes"]),
        ([2.1, 2.1], 0.7, ["loses?", "0.955x", "+0.000", "yes"]),
    ],
)
def test_alternatives_table__an_alternative__says_who_wins(
    findings: ModuleType, seconds: float | list[float], score: float, wanted: list[str]
) -> None:
    """Dominated, lost to, or traded with; equal up to the last digit shown is as good; doubted within the spread."""
    ours = record("accelerated", [2.0, 2.2, 2.4] if isinstance(seconds, list) else 2.0, 0.7)
    summary = findings.summarise("ms", "dice", [ours, record("masked_tiles", seconds, score)])
    line = import_benchmark("page.tables").alternatives_table(summary).splitlines()[-1]
    assert line.strip("| ").split(" | ")[1:] == wanted


@pytest.mark.parametrize(
    ("name", "seconds", "score", "missed"),
    [
        ("em", 3.0, 0.69, set()),
        ("em", 3.1, 0.7, {"speed"}),
        ("em", 1.0, 0.68, {"IoU"}),
        ("lung", 0.2, 0.7, set()),
        ("lung", 0.2, 0.6996, {"IoU"}),
        ("ms", 9.0, 0.7, set()),
    ],
)
def test_checks__aims__are_met_or_not(
    findings: ModuleType, name: str, seconds: float, score: float, missed: set[str]
) -> None:
    """Aims hold to the letter, against nnU-Net and our own one-stage mode alike; without one, no worse is enough."""
    for slower in ("nnunet", "one_stage"):
        rows = [record(row, 9.0 if row == slower else 9.5, 0.7) for row in ("nnunet", "one_stage")]
        found = found_checks(findings, *rows, record("accelerated", seconds, score), name=name, quality="iou")
        assert {kind for kind, check in found.items() if not check.met} == missed
        assert found["speed"].other == slower  # the one that is harder to beat


def test_checks__bound_and_fill__are_beside_their_aims(findings: ModuleType) -> None:
    """Met on the limit; few boxes need not fill canvases; what is not known is not judged."""
    met = {"bound_s": 1.6, "boxes": {"selected": 50}, "fill": 0.8}
    found = found_checks(findings, record("accelerated", [1.9, 2.0, 2.1], 0.7, **met))
    assert {kind: check.met for kind, check in found.items()} == {
        "spread of runs": True, "seconds": True, "canvas fill": True
    }  # fmt: skip
    missed = {"bound_s": 1.5, "boxes": {"selected": 50}, "fill": 0.79}
    found = found_checks(findings, record("accelerated", 2.0, 0.7, **missed))
    assert {kind: check.met for kind, check in found.items()} == {"seconds": False, "canvas fill": False}
    assert found_checks(findings, record("accelerated", 2.0, 0.7, boxes={"selected": 49}, fill=0.1)) == {}
    assert found_checks(findings, record("two_stage", 2.0, 0.7)) == {}


def test_largest_gaps__several_data_sets__ranks_by_times_the_aim(findings: ModuleType) -> None:
    """By hand: 2.5 / 1.25, 0.8 / 0.5, 600 / 500 and 0.9 / 0.8; of a kind only the largest of a data set counts."""
    rows = [
        record("nnunet", 9.0, 0.8), record("masked_tiles", 9.0, 0.88), record("nnunet_step_0.8", 9.0, 0.9),
        record("accelerated", 2.5, 0.8, bound_s=1.0, fill=0.5, boxes={"selected": 90}, peak_rss_mb=600.0),
    ]  # fmt: skip
    even = findings.summarise("word", "dice", [record("nnunet", 9.0, 0.8), record("accelerated", 2.5, 0.8)])
    summaries = [even, findings.summarise("ms", "dice", rows)]
    found = findings.largest_gaps(summaries, count=9)
    assert [(gap.kind, round(gap.size, 4)) for gap in found] == [
        ("seconds", 2.0), ("canvas fill", 1.6), ("peak memory", 1.2), ("Dice of alternatives", 1.125),
    ]  # fmt: skip
    assert len(findings.largest_gaps(summaries)) == 3
    assert findings.largest_gaps([even]) == []


def test_largest_gaps__a_loss_and_unsteady_runs__are_gaps(findings: ModuleType) -> None:
    """An alternative that is as good in a third of the time; runs that differ by 32 % where 10 % are allowed."""
    rows = [record("masked_tiles", 1.0, 0.7), record("accelerated", [2.6, 3.0, 3.56], 0.7)]
    found = findings.largest_gaps([findings.summarise("ms", "dice", rows)])
    assert [(gap.kind, round(gap.size, 3)) for gap in found] == [
        ("seconds of what is as good", 3.0), ("spread of runs", 1.2),
    ]  # fmt: skip


def test_write_page__warnings_and_a_weak_model__are_told(page: ModuleType, folder: Path) -> None:
    """What a run warned of is on the page, and that nnU-Net itself fails; so is that accelerated was not measured."""
    write(folder / "results", "ms", record("nnunet", 8.0, 0.4), record("accelerated", 2.0, 0.7, warnings=["it rains"]))
    write(folder / "results", "organs", record("nnunet", 8.0, 0.9))
    text = page.write_page(page.load_results(folder / "results"), folder / "RESULTS.md")
    parts = {part.partition(":")[0]: part for part in text.split("\n### ")}
    assert "nnU-Net's own Dice is below 0.5" in parts["ms"]
    assert "The run warned:\n\n- it rains" in parts["ms"]
    assert "is below" not in parts["em"]
    assert "`accelerated` was not measured" in parts["organs"]


def test_main__a_results_folder__writes_well_formed_tables(call: Callable[..., int], folder: Path) -> None:
    """Every table has as many cells in each line; unknown values are dashes; what is no data set is left out."""
    assert call() == 0
    text = (folder / "RESULTS.md").read_text()
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line) for line in block.splitlines()]
        assert {len(line) for line in lines} == {len(lines[0])}
        assert all(re.fullmatch("---:?", cell) for cell in lines[1][1:-1])
    ours = next(line for line in text.splitlines() if line.startswith("| accelerated | 4.00x"))
    assert ours.split(" | ")[1:6] == ["4.00x", "2.00", "0.700", "0.700", "0.900 |"]
    assert "| masked_tiles | 1.60x | 5.00 | 0.600 | 0.600 | - |" in text
    assert r"a \| b" in text
    assert "assign" not in text
    assert text.count("| em | seconds | lower bound | 2.00x | at most 1.25x | 1.60 |") == 1


def test_main__experiments__show_some_rows_and_name_the_rest(call: Callable[..., int], folder: Path) -> None:
    """Twelve rows from the first to the last, constants once, lists not at all, links from the page."""
    put_experiment(
        folder / "results" / "em" / "growth.json", 2, title=None, slopes={"accelerated": {"total_s": 0.9871}}
    )
    assert call() == 0
    text = (folder / "RESULTS.md").read_text()
    part = text[text.index("#### How many share") : text.index("#### How time and memory grow")]
    assert "Case a. Medians of 3 runs. All rows: [capacity.json](results/em/experiments/capacity.json)" in part
    assert "In all rows: norm case; Dice 0.500. Shown: 12 of 30 rows, evenly picked." in part
    assert "| capacity | total s |" in part
    numbers = [int(line.split(" | ")[0][2:]) for line in part.splitlines() if re.match(r"\| \d", line)]
    assert (len(numbers), numbers[0], numbers[-1]) == (12, 0, 29)
    assert {later - earlier for earlier, later in pairwise(numbers)} == {2, 3}
    assert "![How many share](results/em/experiments/capacity.png)" in part
    assert "capacity_case.jpg)\n\nThis picture shows the data and has their licence: CC BY-NC-SA 3.0." in part
    assert "Slopes: accelerated total s 0.987." in text


def test_main__agents_in_experiments__those_that_are_gone_are_named(call: Callable[..., int], folder: Path) -> None:
    """A reader looks for no agent that the repository does not have; rules are no agents."""
    names = ("gains-seed1", "policy-network_mean-seed7", "greedy", "random-0")
    rows = [{"chosen_by": name, "dice": 0.1 * at} for at, name in enumerate(names)]
    put_experiment(folder / "results" / "em" / "experiments" / "order.json", 0, title="Who chooses", rows=rows)
    assert call() == 0
    parts = (folder / "RESULTS.md").read_text().split("#### ")
    told = [part for part in parts if "does not keep: policy-network_mean-seed7; `python benchmarks/assign.py" in part]
    assert [part.partition("\n")[0] for part in told] == ["Who chooses"]
    assert "does not keep" not in "".join(part for part in parts if part not in told)


def test_main__the_readme__changes_between_its_markers_only(call: Callable[..., int], folder: Path) -> None:
    """All other bytes stay; the table has both rows of each data set, and only commands that measured them."""
    assert call() == 0
    before, _, rest = (folder / "README.md").read_bytes().partition(b"<!-- results: begin -->\n")
    block, _, after = rest.partition(b"<!-- results: end -->")
    assert (before, after) == tuple(README.split(b"<!-- results: begin -->\nold\n<!-- results: end -->"))
    text = block.decode()
    assert "| 1 | 8.00 s | 2.00 s | **4.00x** | IoU | 0.650 | 0.700 | - | 1.00 of nnU-Net's 500 MB |" in text
    assert "python benchmarks/run.py --dataset em --rows nnunet accelerated     # and lung\n" in text
    assert "experiments all" not in text
    assert "a machine; 2 cores, 1 thread, device cpu; 2026-01-01 (em, lung)" in text
    assert "[RESULTS.md](RESULTS.md)" in text


@pytest.mark.parametrize("text", ["", "<!-- results: begin -->", "<!-- results: end --> <!-- results: begin -->"])
def test_main__a_readme_without_markers__writes_nothing(
    call: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """The error names both lines and says where they belong."""
    (folder / "README.md").write_text(text)
    assert call() == 1
    assert "<!-- results: end -->, once each" in capsys.readouterr().err
    assert not (folder / "RESULTS.md").exists()
    assert not list(folder.rglob("pareto.png"))


@pytest.mark.long
def test_main__check__finds_every_drift(
    call: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed page, README, picture or result is found, and --check repairs nothing."""
    assert call("--check") == 1
    assert call() == 0
    assert call("--check") == 0
    Image.new("RGB", (2, 2)).save(folder / "other.png")
    for name, other in (("RESULTS.md", b"x"), ("README.md", README), ("results/em/pareto.png", None)):
        file = folder / name
        right = file.read_bytes()
        wrong = other or (folder / "other.png").read_bytes()
        file.write_bytes(wrong)
        capsys.readouterr()
        assert call("--check") == 1
        assert file.read_bytes() == wrong
        assert capsys.readouterr().err.startswith(f"not up to date: {file}\n")
        file.write_bytes(right)
        assert call("--check") == 0
    file = folder / "results" / "em" / "results.json"
    file.write_text(file.read_text().replace("0.65", "0.66"))
    assert call("--check") == 1
    told = capsys.readouterr().err
    assert all(name in told for name in ("RESULTS.md", "README.md", "pareto.png"))
    assert "lung" not in told


@pytest.mark.long
def test_main__twice__makes_the_same_files(call: Callable[..., int], folder: Path) -> None:
    """Page, README and pictures do not depend on when they are made."""
    names = ("RESULTS.md", "README.md", "results/em/pareto.png")
    assert call() == 0
    first = [(folder / name).read_bytes() for name in names]
    assert call() == 0
    assert [(folder / name).read_bytes() for name in names] == first


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"row": "nnunet"}]'])
def test_load_results__damaged_or_none__says_so(tmp_path: Path, content: str) -> None:
    """The error names the file or the folder."""
    page = import_benchmark("page.loading")
    with pytest.raises(C2FError, match="no results in"):
        page.load_results(tmp_path)
    (tmp_path / "em").mkdir()
    (tmp_path / "em" / "results.json").write_text(content)
    with pytest.raises(C2FError, match=r"results\.json"):
        page.load_results(tmp_path)


def test_plot_pareto__a_crowd__numbers_do_not_overlap(findings: ModuleType, plots: ModuleType) -> None:
    """Twelve points, closer to each other than numbers are wide, of which each number finds a free place."""
    rows = [record(f"row {at}", 2.0 + 0.05 * at, 0.7 + 0.003 * (at % 3)) for at in range(10)]
    rows += [record("accelerated", 2.2, 0.704, bound_s=1.9), record("nnunet", 9.0, 0.6)]
    figure = plots.plot_pareto(findings.summarise("ms", "dice", rows), "a crowd")
    figure.draw_without_rendering()
    labels = figure.axes[0].texts
    boxes = [label.get_window_extent() for label in labels]
    places = figure.axes[0].transData.transform([label.xy for label in labels])
    assert any(abs(first - second).max() < 8 for first, second in combinations(places, 2))
    # Text extents hold room for descenders, which digits do not have.
    shrunk = [box.padded(0, -0.1 * box.height) for box in boxes]
    assert not any(first.overlaps(second) for first, second in combinations(shrunk, 2))
    assert {label.get_text().split()[0] for label in labels} == {str(rank) for rank in range(1, 13)}


def test_draw_pareto__a_file__is_a_picture_that_knows_its_results(
    findings: ModuleType, plots: ModuleType, tmp_path: Path
) -> None:
    """It opens elsewhere, is not empty, and its fingerprint follows the numbers."""
    rows = [record("nnunet", 9.0, 0.6), record("accelerated", 2.0, 0.7)]
    summary = findings.summarise("ms", "dice", rows)
    plots.draw_pareto(summary, "two rows", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10
    assert plots.drawn_from(tmp_path / "a.png") == plots.fingerprint(summary)
    other = findings.summarise("ms", "dice", [rows[0], record("accelerated", 2.0, 0.71)])
    assert plots.fingerprint(other) != plots.fingerprint(summary)
    assert plots.drawn_from(tmp_path / "none.png") is None


def test_main__the_repository__page_and_readme_are_those_of_its_results(page: ModuleType) -> None:
    """What is committed was made from the JSON beside it; otherwise: python benchmarks/results_page.py."""
    assert page.main(["--check"]) == 0
