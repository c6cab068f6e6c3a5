"""The tables of ``docs/assignnet.md``, as Markdown, from what ``assign.py`` wrote.

python benchmarks/selection/tables.py
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common.machine import ROOT
from benchmarks.common.markdown import table
from coarse2fine.config.validation import did_you_mean
from coarse2fine.errors import C2FError

RULES = ("all_parents", "all_children", "greedy", "greedy_drop", "top_k", "random")
KINDS = ("gains", "policy")
ABLATIONS = {
    "policy-seed0": "policy, 7 values per region",
    "policy-start_label-seed0": "with `start_label`",
    "policy-network-seed0": "with the coarse network's features, max",
    "policy-network_mean-seed0": "the same, mean",
    "policy-network_global-seed0": "the same, max, with `global_info`",
    "gains-seed0": "for comparison: gains, 7 values",
    "all_children": "for comparison: all children",
}
ORIGINAL_LAMBDAS = (0.03, 0.05, 0.1275)
"""Of the original system's data sets."""
Results = dict[str, Any]


def load(folder: Path, name: str) -> Results:
    """The results of a data set.

    Raises:
        C2FError: If there are none.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        there = sorted(one.stem for one in folder.glob("*.json"))
        raise C2FError(f"no results {path.name} in {folder}", f"{did_you_mean(name, there)} Run assign.py.".strip())
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    return results


def values(results: Results, names: Iterable[str], which: str, key: str, weight: float) -> list[float]:
    """One figure of several policies at one lambda."""
    wanted = set(names)
    rows = (row for row in results["rows"] if row["policy"] in wanted and row["set"] == which)
    return [row[key] for row in rows if row["lambda"] == weight]


def seeds(results: Results, kind: str) -> list[str]:
    """Agents of a kind, all seeds, without ablations."""
    found = {row["policy"] for row in results["rows"] if re.fullmatch(rf"{kind}-seed\d+", row["policy"])}
    return sorted(found)


def by_lambda(title: str, weights: Sequence[float], rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    """A Markdown table with a column for each lambda."""
    heads = [title, *(format(weight, "g") for weight in weights)]
    return table(heads, [[name, *cells] for name, cells in rows], left=len(heads))


def oracle_shares(results: Results) -> str:
    """Shares of the oracle's reward on the held-out trees; of agents the mean over seeds, with least and greatest."""

    def cell(names: Sequence[str], weight: float) -> str:
        shares = values(results, names, "trees", "oracle_fraction", weight)
        span = f" ({min(shares):.2f} to {max(shares):.2f})" if len(shares) > 1 else ""
        return f"{fmean(shares):.3f}{span}"

    policies = [(name, [name]) for name in RULES]
    policies += [(f"{kind}, {len(found)} seed(s)", found) for kind in KINDS if (found := seeds(results, kind))]
    weights = results["lambdas"]
    return by_lambda(
        "lambda", weights, ((name, (cell(found, weight) for weight in weights)) for name, found in policies)
    )


def whole_case(results: Results) -> str:
    """Quality and slots on the whole case; of each kind of agent the mean over seeds."""
    weights = results["lambdas"]

    def cell(names: Sequence[str], weight: float) -> str:
        quality, slots = (fmean(values(results, names, "case", key, weight)) for key in ("quality", "slots"))
        return f"{quality:.3f} / {slots:.1f}"

    policies = [(name, [name]) for name in ("oracle", *RULES)]
    policies += [(f"{kind}, mean", found) for kind in KINDS if (found := seeds(results, kind))]
    title = f"{results['metric']} / slots"
    return by_lambda(title, weights, ((name, (cell(found, weight) for weight in weights)) for name, found in policies))


def ablations(results: Results) -> str:
    """Mean reward over the held-out trees, one seed."""
    known = {row["policy"] for row in results["rows"]}
    rows = (
        (title, (f"{fmean(values(results, [name], 'trees', 'reward', weight)):.3f}" for weight in ORIGINAL_LAMBDAS))
        for name, title in ABLATIONS.items()
        if name in known
    )
    return by_lambda("reward", ORIGINAL_LAMBDAS, rows)


def orders(results: Results) -> str:
    """Quality of the same regions in several orders, on real canvases."""
    rows = results.get("order", [])
    names = list(dict.fromkeys(row["order"] for row in rows))
    lines = []
    for packing, norm in dict.fromkeys((row["packing"], row["norm"]) for row in rows):
        found = [row for row in rows if (row["packing"], row["norm"]) == (packing, norm)]
        lines.append([f"{packing}, norm: {norm}", *(format(row[results["metric"]], ".3f") for row in found)])
    return table([results["metric"], *names], lines, left=len(names) + 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "assign", metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        em, synthetic, lung = (load(options.results, name) for name in ("em", "synthetic", "lung"))
    except C2FError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for title, text in (
        ("EM, share of the oracle's reward", oracle_shares(em)),
        ("EM, the whole case", whole_case(em)),
        ("EM, ablations", ablations(em)),
        ("EM, orders", orders(em)),
        ("Synthetic, share of the oracle's reward", oracle_shares(synthetic)),
        ("Lung, share of the oracle's reward", oracle_shares(lung)),
    ):
        print(f"{title}\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
