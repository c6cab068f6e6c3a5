"""The page of all studies, made from their files of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common.markdown import table
from benchmarks.pretraining.published import PUBLISHED
from benchmarks.pretraining.results import Results, load
from benchmarks.pretraining.rows import Baselines, Gain, Row, gains
from benchmarks.pretraining.studies import STUDIES, find
from coarse2fine.errors import C2FError
from coarse2fine.io import atomic_write

INTRODUCTION = """\
# Does pretraining help? What we measured

Made by `python benchmarks/pretrain.py --page` from the files in `benchmarks/results/pretraining`. How to pretrain, \
and what of it is worth your time by these figures, is in [pretraining.md](pretraining.md#is-it-worth-your-time).

The networks are tiny and the data small, so that each study takes minutes on one core. A gain is the method's mean \
less that of its baseline, at the same seeds, test cases and number of steps with labels; above 0 it is better. The \
interval covers the true gain with 95 %, over new seeds and new cases alike: the analysis of several readers and \
cases with seeds in the place of readers (Dorfman, Berbaum and Metz 1992). With three seeds it is wide. "No difference \
shown" means that 0 lies within it, not that there is none. Intervals are not corrected for the number of comparisons: \
of every 40 methods that do nothing, about one looks better and one worse."""

CANNOT = """\
## What we could not measure

| what | why | with the data |
|---|---|---|
| MRM and REFERS pretrained on MIMIC-CXR | access needs a course and a signed agreement (PhysioNet) | \
`c2f-convert mimic-cxr MIMIC-CXR-JPG --reports MIMIC-CXR -o mimic`, then `c2f-pretrain` as in \
[records.md](records.md) |
| NIH ChestX-ray14 in full, official split | 42 GB; a sample of 1000 at 64 x 64 stands in for it here | \
`c2f-convert chestxray14 ChestXray-NIHCC -o nih`, then [c2f-finetune](finetuning.md) at `--share` 0.01, 0.1 and 1 |
| CheXpert | access needs an agreement | `c2f-convert chexpert CheXpert-v1.0-small -o chexpert`, then likewise |
| pneumothorax on SIIM-ACR | its images need an account; lung masks stand in for it here | \
`c2f-convert siim-acr siim-acr-pneumothorax -o siim`, then `c2f-finetune --masks siim/masks` |
| weights from ImageNet | they are of other networks than ours | none: `--weights` takes those of `c2f-pretrain` only |
| radiographs of shoulders | not public | `c2f-pretrain --network vit --images DIR -o pretrained`, then \
[c2f-finetune](finetuning.md) |"""


def make_page(results: Path, page: Path, *, check: bool) -> None:
    """Write the page, or only see that it is up to date.

    Raises:
        C2FError: If a file of results is damaged, or the page is to be checked and is not what would be written.
    """
    text = write_page([load(path) for name in STUDIES if (path := results / f"{name}.json").exists()])
    if not check:
        with atomic_write(page) as path:
            path.write_text(text, encoding="utf-8", newline="\n")
    elif not page.exists() or page.read_text(encoding="utf-8") != text:
        raise C2FError(f"{page} is not up to date", "Run python benchmarks/pretrain.py --page.")


def write_page(found: Sequence[Results]) -> str:
    """The page's text."""
    names = [one.study for one in found]
    missing = [name for name in STUDIES if name not in names]
    parts = [INTRODUCTION, *map(section, found)]
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.")
    parts += ["## What others have published", "On other data, with larger networks and more steps than ours."]
    return "\n\n".join([*parts, *(one.to_markdown() for one in PUBLISHED), CANNOT]) + "\n"


def section(results: Results) -> str:
    """One study."""
    study = find(results.study)
    parts = [f"## {study.TITLE}", study.ABOUT.strip()]
    measures = dict.fromkeys(row.measure for row in results.rows)
    parts += [f"{one}:\n\n{measure_table(results.rows, one, study.BASELINES)}" for one in measures]
    where, versions = results.environment, results.environment["versions"]
    about = f"`{results.command}`: {results.seconds / 60:.0f} minutes, {len(results.seeds)} seeds"
    about += f", {where['machine']}, {where['threads']} thread{'s' if where['threads'] > 1 else ''}"
    about += "".join(f", {name} {versions[name]}" for name in ("torch", "nnunetv2") if name in versions)
    unfinished = [] if results.finished else ["**Not finished.**"]
    shortened = [] if results.steps is None else [f"**Tried out with {results.steps} steps only.**"]
    return "\n\n".join([*parts, *unfinished, *shortened, about + "."])


def measure_table(rows: Sequence[Row], measure: str, baselines: Baselines) -> str:
    """All methods by labels: mean and range over seeds, and the gain."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.measure == measure:
            groups.setdefault((row.labels, row.method), []).append(row)
    order = {labels: index for index, labels in enumerate(dict.fromkeys(labels for labels, _ in groups))}
    found, lines = gains(rows, baselines), []
    for labels, method in sorted(groups, key=lambda key: order[key[0]]):
        values = [row.value for row in groups[labels, method]]
        spread = f"{_number(float(np.mean(values)))} ({_number(min(values))} to {_number(max(values))})"
        lines.append([labels, method, spread, *gain_cells(found.get((measure, labels, method)))])
    return table(("labels", "method", "mean (range of seeds)", "gain", "95 % interval", "against", ""), lines, left=2)


def _number(value: float) -> str:
    """Three decimals, or the order of what would vanish."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.0e}"


def gain_cells(gain: Gain | None) -> list[str]:
    """Gain, interval, baseline, and what it says."""
    if gain is None:
        return [""] * 4
    if gain.interval is None:
        return [f"{gain.mean:+.3f}", "", gain.baseline, "one seed"]
    low, high = gain.interval
    says = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    return [f"{gain.mean:+.3f}", f"{low:+.3f} to {high:+.3f}", gain.baseline, says]
