"""Writes ``RESULTS.md`` and the README's table from the JSON that ``run.py`` has written, and draws their pictures.

    python benchmarks/results_page.py
    python benchmarks/results_page.py --check     # exit code 1 if the files differ from what would be written

No number is written by hand: tables and pictures follow from the results alone, and the same results give
the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from benchmarks.common.machine import ROOT
from benchmarks.common.registry import Dataset
from benchmarks.page.findings import (
    BASELINE,
    EVEN,
    FILL_BOXES,
    OURS,
    POOR,
    Row,
    Summary,
    checks,
    front,
    largest_gaps,
    significant,
)
from benchmarks.page.headline import has_both, headline, is_poor
from benchmarks.page.learning import learning
from benchmarks.page.loading import Experiment, Results, load_results
from benchmarks.page.paired import MARGIN
from benchmarks.page.plots import draw_pareto, drawn_from, fingerprint
from benchmarks.page.summary_file import FILE as SUMMARY
from benchmarks.page.summary_file import summary_text
from benchmarks.page.tables import (
    aims_table,
    alternatives_table,
    column_meanings,
    experiment_tables,
    gaps_table,
    labels_table,
    leaves,
    paired_table,
    row_tables,
    value_text,
)
from coarse2fine.errors import C2FError
from coarse2fine.io import atomic_write

AGENTS = ROOT / "benchmarks" / "agents"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
EXACT: Final = MappingProxyType({"encoding": "utf-8", "errors": "surrogateescape"})
"""How the README is read and written, so that bytes that are no text stay as they are, and line ends too."""
INTRODUCTION = """How fast coarse2fine is and how good its results are, beside nnU-Net and the alternatives that
users have, with the same models on the same machine. This page is written by `python benchmarks/results_page.py` from
the JSON files under `benchmarks/results`; do not edit it by hand."""
RERUN = """Cases and models lie in `../shared`, beside the repository; `--data` and `--models` name other folders.
`python benchmarks/run.py --list` shows all data sets, rows and experiments. A command that was cut off goes on where it
stopped when it is given again; to measure anew, remove the data set's folder under `benchmarks/results` first.
Afterwards `python benchmarks/results_page.py` renews this page, its pictures and the README's table, and with `--check`
tells whether they fit the JSON."""
ROW_MEANINGS = """Metrics are means over foreground labels. The row **lower bound** is no run: it is the least time in
which accelerated's choice of regions could be segmented, its coarse pass and one canvas for each canvas that its crops
would fill without gaps. **accelerated** is coarse2fine as users get it; the rows below **others** are no part of it."""
PAIRED_MEANINGS = f"""Beside one-stage mode, case by case: the mean difference, its 95 % bootstrap interval over
cases, and whether the whole interval lies above {-MARGIN:g}. Of fewer than about ten cases such intervals are somewhat
too narrow."""
VERDICT_MEANINGS = f"""Against an alternative accelerated **dominates** (faster and at least as good), **loses**
(slower and at most as good) or **trades**; qualities that differ by at most {EVEN:g} are equal, and a question mark
says that the difference in time is within the spread of the runs."""
AIM_RULE = f"""Of each kind of aim the table shows what is furthest from it: speed and quality beside nnU-Net and
one-stage (no worse than theirs, where a data set has no aim of its own), quality beside better alternatives, seconds
beside alternatives that are at least as good, seconds over the lower bound, canvas fill (from {FILL_BOXES} boxes on),
peak memory over nnU-Net's, and how far a row's runs differ."""


def write_page(results: Sequence[Results], page: Path) -> str:
    """The text of the page: what matters on the first screen, everything else below it."""
    parts = ["# Results", one_line(INTRODUCTION), *headline(results), *_plots(results, page), *_gaps(results)]
    parts += ["## What was measured", *_measured(results)]
    parts += [
        "### Columns",
        column_meanings(),
        _row_meanings(page),
        one_line(VERDICT_MEANINGS),
        one_line(AIM_RULE),
        "### Again",
        one_line(RERUN),
        "## Data sets",
    ]
    for one in results:
        parts += _dataset(one, page)
    if any(one.experiments for one in results):
        parts += ["## Experiments"]
    for one in results:
        parts += [f"### {one.dataset.name}: {one.dataset.title}"] if one.experiments else []
        for experiment in one.experiments:
            parts += _experiment_text(experiment, one.dataset, page)
    return "\n\n".join(parts) + "\n"


def one_line(text: str) -> str:
    """A paragraph as Markdown has it here, without line breaks."""
    return " ".join(text.split())


def _row_meanings(page: Path) -> str:
    """What rows are, and where more is said about them."""
    terms, rows, others = (
        f"[{file}]({link(ROOT / file, page)})"
        for file in ("docs/design.md", "benchmarks/rows/methods.py", "benchmarks/rows/alternatives.py")
    )
    return (
        f"{one_line(ROW_MEANINGS)} {terms} defines terms, {rows} lists all rows, and {others} tells what the others do."
    )


def _plots(results: Sequence[Results], page: Path) -> Iterator[str]:
    """The pictures of rows, side by side as far as there is room."""
    pictures = [one for one in results if one.picture]
    if pictures:
        yield "\n".join(
            f'<img src="{link(one.picture, page)}" width="32%" alt="{one.summary.measure} and seconds on '
            f'{one.dataset.name}">'
            for one in pictures
            if one.picture
        )


def _measured(results: Sequence[Results]) -> Iterator[str]:
    """On what, when, with which versions, by which commands."""
    for machine, sessions in by_machine(results).items():
        yield "- " + "\n- ".join(describe_machine(machine, sessions))
    commands = [command for one in results for command in dict.fromkeys(session["command"] for session in one.sessions)]
    if commands:
        yield "By these commands:"
        yield "```\n" + "\n".join(commands) + "\n```"


def by_machine(results: Sequence[Results]) -> dict[str, list[tuple[str, Row]]]:
    """Data sets and sessions of each kind of machine, threads and versions."""
    found: dict[str, list[tuple[str, Row]]] = {}
    for one in results:
        for session in one.sessions:
            known = {
                key: session["environment"].get(key) for key in ("machine", "device", "cores", "threads", "versions")
            }
            found.setdefault(json.dumps(known), []).append((one.dataset.name, session))
    return found


def describe_machine(machine: str, sessions: Sequence[tuple[str, Row]]) -> list[str]:
    """A machine, when it was used and for which data sets, and versions."""
    known, dates = json.loads(machine), sorted({session["date"] for _, session in sessions})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    loads = [session["environment"].get("load_average", [0])[0] for _, session in sessions]
    threads = f"{known['threads']} thread{'s' if known['threads'] != 1 else ''}"
    names = ", ".join(dict.fromkeys(name for name, _ in sessions))
    return [
        f"{known['machine']}; {known['cores']} cores, {threads}, device {known['device']}; {when} ({names})",
        f"Load average when a command was started: {min(loads):.1f} to {max(loads):.1f}; other work makes times longer",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in (known["versions"] or {}).items()),
    ]


def _dataset(one: Results, page: Path) -> Iterator[str]:
    """A data set's section."""
    dataset, summary = one.dataset, one.summary
    yield f"### {dataset.name}: {dataset.title}"
    about = [f"Stands in for {dataset.stands_in_for}."] if dataset.stands_in_for else []
    about += [f"Source: {dataset.source.rstrip('.')}. Licence of the data: {dataset.licence.rstrip('.')}."]
    yield " ".join(about)
    if not summary.rows:
        yield "No rows were measured here, only experiments."
        return
    cases = (
        f"Test case: {summary.cases[0]}." if len(summary.cases) == 1 else f"Means over {len(summary.cases)} test cases."
    )
    if summary.trained_on:
        cases = f"**Models were trained on these cases: {', '.join(summary.cases)}.** Qualities are too good."
    tolerance = f"The tolerance of surface Dice is {one.tolerance:g}, in the unit of the spacing."
    yield f"{cases} The measure that counts most is {summary.measure}. {tolerance}"
    yield from learning(dataset, summary)
    yield from row_tables(summary)
    if beside := paired_table(summary):
        yield one_line(PAIRED_MEANINGS)
        yield beside
    if by_label := labels_table(summary):
        yield "Mean Dice of each label:"
        yield by_label
    if summary.incomplete:
        yield f"Not measured on all cases, and left out: {'; '.join(summary.incomplete)}."
    if one.picture:
        yield f"![{summary.measure} and seconds of all rows on {dataset.name}]({link(one.picture, page)})"
    yield from _verdicts(summary)


def _verdicts(summary: Summary) -> Iterator[str]:
    """What follows from a data set's rows."""
    ours = summary.find(OURS)
    if ours is None:
        yield "`accelerated` was not measured, so there is nothing to compare."
        return
    if is_poor(summary):
        yield f"nnU-Net's own {summary.measure} is below {POOR:g}: with this fine model, qualities say little."
    yield alternatives_table(summary)
    named = (f"{row['title']} ({significant(row['total_s'])} s, {row[summary.quality]:.3f})" for row in front(summary))
    yield f"Pareto front of all rows, from fast to slow: {'; '.join(named)}."
    yield aims_table(checks(summary))
    if ours["warnings"]:
        yield "The run warned:\n\n- " + "\n- ".join(ours["warnings"])


def _experiment_text(one: Experiment, dataset: Dataset, page: Path) -> Iterator[str]:
    """An experiment's section."""
    yield f"#### {one.title}"
    told = [f"Case {one.about['case']}."] if one.about.get("case") else []
    told += [f"Medians of {one.repeat} runs."] if one.repeat > 1 else []
    yield " ".join([*told, f"All rows: [{one.file.name}]({link(one.file, page)})."])
    # What is said above and on the page need not be said in each table again.
    yield from experiment_tables(
        [{key: row[key] for key in row if row[key] != one.about.get(key, object())} for row in one.rows]
    )
    gone = [name for name in one.agents if not (AGENTS / dataset.name / name).is_dir()]
    if gone:
        yield (
            f"Agents that the repository does not keep: {', '.join(gone)}; `python benchmarks/assign.py --dataset "
            f"{dataset.name} --train` trains them."
        )
    if one.slopes:
        yield f"Slopes: {'; '.join(f'{name} {value_text(name, value)}' for name, value in leaves(one.slopes))}."
    for picture in one.pictures:
        yield f"![{one.title}]({link(picture, page)})"
        if picture.stem != one.file.stem:
            yield f"This picture shows the data and has their licence: {dataset.licence.rstrip('.')}."


def _gaps(results: Sequence[Results]) -> Iterator[str]:
    yield "## The largest gaps"
    found = largest_gaps(one.summary for one in results)
    yield gaps_table(found) if found else "No gap is left."


def link(file: Path, page: Path) -> str:
    """A file as seen from a page."""
    return Path(os.path.relpath(file.resolve(), page.resolve().parent)).as_posix()


def readme_block(results: Sequence[Results], page: Path, readme: Path) -> str:
    """What stands between the README's markers: the table, how to get it again, and the machines."""
    shown = [one for one in results if has_both(one.summary)]
    names = [one.dataset.name for one in shown]
    rows = [replace(one, sessions=[each for each in one.sessions if measures_rows(each["command"])]) for one in shown]
    machines = [describe_machine(*item)[0] for item in by_machine(rows).items()]
    parts = [*headline(results)]
    if names:
        others = f"     # and {', '.join(names[1:])}" if names[1:] else ""
        parts.append(f"```\npython benchmarks/run.py --dataset {names[0]} --rows {BASELINE} {OURS}{others}\n```")
    parts += [f"Measured on {'; and on '.join(machines)}."] if machines else []
    parts += [f"All rows, alternatives, experiments, commands and versions: [{page.name}]({link(page, readme)})."]
    return "\n\n".join(parts)


def measures_rows(command: str) -> bool:
    """Whether a command of ``run.py`` measured rows, and not only experiments."""
    return "--experiments" not in command.split() or "--rows" in command.split()


def put_between_markers(text: str, block: str, name: str) -> str:
    """A text with something else between its markers; all the rest stays as it is.

    Raises:
        C2FError: If there is not one of each, in this order.
    """
    if (text.count(BEGIN), text.count(END)) != (1, 1) or text.index(BEGIN) > text.index(END):
        raise C2FError(
            f"{name} does not have the line {BEGIN} and then the line {END}, once each",
            "Put both where the table of results belongs; what stands between them is replaced.",
        )
    return f"{text[: text.index(BEGIN)]}{BEGIN}\n{block}\n{text[text.index(END) :]}"


def make(options: argparse.Namespace) -> list[str]:
    """Write everything, or with ``--check`` only look; returns what differs from the files that were there."""
    results = load_results(options.results)
    old = options.readme.read_bytes().decode(**EXACT) if options.readme.is_file() else ""
    block = readme_block(results, options.page, options.readme)
    texts = {
        options.readme: put_between_markers(old, block, options.readme.name),
        options.page: write_page(results, options.page),
    }
    texts |= {one.folder / SUMMARY: summary_text(one.summary) for one in results if one.summary.rows}
    pictures = {one.picture: one for one in results if one.picture}
    stale = [path for path, one in pictures.items() if drawn_from(path) != fingerprint(one.summary)]
    stale += [path for path, text in texts.items() if not path.is_file() or path.read_bytes() != text.encode(**EXACT)]
    if not options.check:
        for path, one in pictures.items():
            draw_pareto(one.summary, f"{one.dataset.name}: {one.dataset.title}", path)
        for target, text in texts.items():
            with atomic_write(target) as file:
                file.write_bytes(text.encode(**EXACT))
    return [str(path) for path in stale]


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR", help="what run.py has written")
    add("--page", type=Path, default=ROOT / "benchmarks" / "RESULTS.md", metavar="FILE", help="is written")
    add("--readme", type=Path, default=ROOT / "README.md", metavar="FILE", help="gets a table between its markers")
    add("--check", action="store_true", help="write nothing; exit code 1 if a file is not what would be written")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        stale = make(options)
    except C2FError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.check and stale:
        print(f"not up to date: {', '.join(stale)}\n  Run python benchmarks/results_page.py.", file=sys.stderr)
        return 1
    print("all up to date" if options.check else f"wrote {options.page} and the table in {options.readme}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
