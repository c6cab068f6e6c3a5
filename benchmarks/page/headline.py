"""What the benchmark found, in a table of one line for each data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.common.markdown import table
from benchmarks.page.findings import BASELINE, OURS, POOR, Summary, significant
from benchmarks.page.loading import Results


def headline(results: Sequence[Results]) -> Iterator[str]:
    """A table of one line for each data set, nnU-Net and accelerated, most cases first; then what it leaves out.

    Where nnU-Net's own quality is poor, its fine model is a weak one: such a data set shows speed, and is named below.
    """
    shown = sorted((one for one in results if has_both(one.summary)), key=lambda one: -len(one.summary.cases))
    good = [one for one in shown if not is_poor(one.summary)]
    if not shown:
        yield "No data set has both rows, nnU-Net and accelerated, yet."
    if good:
        heads = ["test cases", "number", "nnU-Net takes", "coarse2fine takes", "faster", "measure"]
        heads += ["nnU-Net's", "coarse2fine's", "less one-stage mode's, 95 % interval", "peak memory"]
        yield table(heads, [_headline_row(one) for one in good])
    fast = [
        f"{one.dataset.title}: {significant(row['ratio'])}x"
        for one in shown
        if is_poor(one.summary) and (row := one.summary.find(OURS))
    ]
    if fast:
        yield (
            f"For speed only, as nnU-Net's own quality with these fine models is below {POOR:g}, so that qualities "
            f"cannot be compared: {'; '.join(fast)}."
        )


def is_poor(summary: Summary) -> bool:
    """Whether qualities say little, because the fine model is a weak one."""
    base = summary.find(BASELINE)
    return base is not None and (base[summary.quality] or 0) < POOR


def has_both(summary: Summary) -> bool:
    """Whether nnU-Net and accelerated can be compared."""
    return summary.find(BASELINE) in summary.judged and summary.find(OURS) in summary.judged


def _headline_row(one: Results) -> list[str]:
    summary = one.summary
    base, ours = ({**(summary.find(name) or {})} for name in (BASELINE, OURS))
    seconds = [f"{significant(row['total_s'])} s" for row in (base, ours)]
    scores = [f"{row[summary.quality]:.3f}" for row in (base, ours)]
    paired, memory = ours["paired"], "-"
    beside = "-" if paired.difference is None else f"{paired.difference:+.3f}"
    if paired.interval is not None:
        beside += " ({:+.3f} to {:+.3f})".format(*paired.interval)
    if base["peak_rss_mb"] and ours["peak_rss_mb"]:
        memory = f"{ours['peak_rss_mb'] / base['peak_rss_mb']:.2f} of nnU-Net's {base['peak_rss_mb']:.0f} MB"
    faster = f"**{significant(ours['ratio'])}x**"
    number = str(len(summary.cases))
    return [one.dataset.title, number, *seconds, faster, summary.measure, *scores, beside, memory]
