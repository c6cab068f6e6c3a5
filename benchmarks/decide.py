"""Whether an agent earns its place: rules and agents on cases that neither the fine model nor any agent has seen.

    python benchmarks/decide.py --dataset head_neck --out head_neck.json

The test cases, which the models have not seen, are divided into ``--folds`` parts; agents learn from all parts but one
and choose in that one. So there is a verdict on every case, and each is judged by the same oracle. Every region of
several trees of each case is segmented once (``Instance``); a choice earns its gain of quality less lambda times its
share of the work. Rows are means over the trees of a case; differences are paired by case, and agents' rewards are
means over seeds.

Kinds of agents: ``gains`` and ``policy`` see the seven numbers of each box, ``gains_coarse`` also what the coarse
network's encoder makes of it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

from rich.console import Console

from assignnet import NO_FEATURES, RULES, Assigner
from assignnet.learn.train import TrainSettings, train_agent
from assignnet.value.evaluate import Row, evaluate, oracles
from assignnet.value.instance import Instance
from assignnet.value.voxel_counts import Metric
from benchmarks.assign import LAMBDAS, QUICK_LAMBDAS, greedy_drop
from benchmarks.common.machine import environment, work_folder
from benchmarks.common.merging import merged_file
from benchmarks.common.registry import MissingDataError, config_file, exit_code, find_case_files, load_dataset
from benchmarks.page.paired import mean_interval
from benchmarks.selection.measures import model_folders
from coarse2fine.cli.train_run import RATES, STEPS
from coarse2fine.config.reader import load_config
from coarse2fine.errors import C2FError
from coarse2fine.io import atomic_write, check_writable, find_cases
from coarse2fine.pipeline import Pipeline
from coarse2fine.selection.features import FeatureSettings
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.training.dataset import LabelledCase, build_instances, cached_instances, how_made, split_instances
from coarse2fine.training.outcomes import OutcomeSettings

Kind = Literal["gains", "gains_coarse", "policy"]
KINDS: Final[tuple[Kind, ...]] = ("gains", "gains_coarse", "policy")
FEATURES: Final = FeatureSettings(source="coarse")
FEWEST_CASES: Final = 4
"""Half of them are two to learn from, since one of these chooses the best network of a training."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What somebody's choices earned in a case at one lambda: means over its trees.

    Attributes:
        policy: A rule, a kind of agent, or ``oracle``.
        seed: Of the agent's training; None for all others.
        case: The case.
        weight: Lambda.
        reward: See ``Instance.reward``.
        best: The oracle's reward.
        quality: Of what was chosen.
        slots: Its cost.
    """

    policy: str
    seed: int | None
    case: str
    weight: float
    reward: float
    best: float
    quality: float
    slots: float

    def row(self) -> dict[str, Any]:
        """Ready for JSON."""
        known = {name: getattr(self, name) for name in ("policy", "seed", "case", "reward", "best", "quality", "slots")}
        return known | {"lambda": self.weight}


def outcomes_of(name: str, seed: int | None, case: str, rows: Sequence[Row]) -> list[Outcome]:
    """One outcome per lambda, of the rows of a case's trees."""
    found = []
    for weight in dict.fromkeys(row.weight for row in rows):
        same = [row for row in rows if row.weight == weight]
        figures = [(row.reward, row.oracle_reward, row.quality, row.slots) for row in same]
        found.append(Outcome(name, seed, case, weight, *(fmean(column) for column in zip(*figures, strict=True))))
    return found


def shown_to(kind: Kind, instances: Sequence[Instance]) -> list[Instance]:
    """The instances with what a kind of agent sees."""
    if kind == "gains_coarse":
        return list(instances)
    return [replace(instance, features=NO_FEATURES) for instance in instances]


def learn(kind: Kind, seed: int, instances: Sequence[Instance], metric: Metric, few: bool) -> Assigner:
    """An agent that has learned from instances; the last fifth of the cases choose its best network."""
    method: Literal["gains", "policy"] = "policy" if kind == "policy" else "gains"
    steps, warm = (1, 1) if few else (STEPS[method], 60)
    settings = TrainSettings(
        kind=method, metric=metric, steps=steps, seed=seed, learning_rate=RATES[method], warm_start=warm
    )
    train, validation = split_instances(shown_to(kind, instances))
    with tempfile.TemporaryDirectory() as folder:
        try:
            return train_agent(train, validation, settings, Path(folder), features={"source": "none"}, about={})
        except ValueError as error:
            raise C2FError(str(error), "Change rois.threshold, --regions or --kinds.") from error


def decide(
    instances: Sequence[Instance],
    metric: Metric,
    weights: Sequence[float],
    kinds: Sequence[Kind],
    seeds: Sequence[int],
    folds: int,
    console: Console,
    *,
    few: bool = False,
) -> list[Outcome]:
    """Let rules, the oracle, and agents that have not seen it choose in every case.

    Args:
        instances: Of all cases, with the features of ``FEATURES``.
        metric: Quality that counts.
        weights: Values of lambda.
        kinds: Of agents.
        seeds: Of each agent's training.
        folds: Parts of the cases, at most as many as cases.
        console: Told how far it is.
        few: Train for one step, to see whether everything works.
    """
    known = oracles(instances, metric, weights)
    choices = {(id(instance.tree), weight): choice.selection for (instance, weight), choice in known.items()}
    fixed: dict[str, Assigner] = {
        "oracle": lambda tree, costs, features=NO_FEATURES: choices[id(tree), costs.weight],
        **RULES,
        "greedy_drop": greedy_drop,
    }
    of_case = group(instances)
    found = []
    for name, rule in fixed.items():
        for case, own in of_case.items():
            found += outcomes_of(name, None, case, evaluate(rule, own, metric, weights, known=known))
    for fold in range(folds):
        held = [*of_case][fold::folds]
        train = [instance for instance in instances if instance.case not in held]
        for kind in kinds:
            for seed in seeds:
                console.print(f"part {fold + 1} of {folds}: {kind}, seed {seed}", highlight=False)
                agent = learn(kind, seed, train, metric, few)
                for case in held:
                    own = of_case[case]
                    shown = shown_to(kind, own)
                    same = {
                        (new, weight): known[old, weight]
                        for new, old in zip(shown, own, strict=True)
                        for weight in map(float, weights)
                    }
                    found += outcomes_of(kind, seed, case, evaluate(agent, shown, metric, weights, known=same))
    return found


def group(instances: Sequence[Instance]) -> dict[str, list[Instance]]:
    """Instances by case."""
    found: dict[str, list[Instance]] = {}
    for instance in instances:
        found.setdefault(instance.case, []).append(instance)
    return found


def by_case(outcomes: Sequence[Outcome], policy: str, weight: float) -> dict[str, float]:
    """Reward of each case, mean over seeds."""
    found: dict[str, list[float]] = {}
    for one in outcomes:
        if one.policy == policy and one.weight == weight:
            found.setdefault(one.case, []).append(one.reward)
    return {case: fmean(rewards) for case, rewards in found.items()}


def compare(outcomes: Sequence[Outcome], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Per lambda: everybody's share of the oracle's reward; each kind of agent less the best rule, case by case.

    The best rule is the one that earns most over these very cases, which favours rules.
    """
    summary = []
    rules = [*RULES, "greedy_drop"]
    for weight in dict.fromkeys(one.weight for one in outcomes):
        rewards = {name: by_case(outcomes, name, weight) for name in ("oracle", *rules, *kinds)}
        total = sum(rewards["oracle"].values())
        shares = {name: sum(found.values()) / total if total else None for name, found in rewards.items()}
        best = max(rules, key=lambda name: sum(rewards[name].values()))
        row: dict[str, Any] = {"lambda": weight, "shares": shares, "best_rule": best, "agents": {}}
        for kind in kinds:
            differences = [reward - rewards[best][case] for case, reward in rewards[kind].items()]
            interval = mean_interval(differences)
            row["agents"][kind] = {
                "difference": fmean(differences),
                "interval": interval,
                "verdict": verdict(interval),
            }
        summary.append(row)
    return summary


def verdict(interval: tuple[float, float] | None) -> str:
    """In a word: what the interval of the difference from the best rule says."""
    if interval is None or not all(map(isfinite, interval)):
        return "unknown"
    low, high = interval
    return "ahead" if low > 0 else "behind" if high < 0 else "level"


def measure(options: argparse.Namespace, work: Path, console: Console) -> dict[str, Any]:
    """Everything, ready for JSON.

    Raises:
        MissingDataError: If data or models are not there, or too few cases have regions.
    """
    dataset = load_dataset(options.dataset)
    folders = model_folders(options.dataset, options.models)
    settings = [f"{stage}.model={json.dumps(str(folder))}" for stage, folder in folders.items()]
    config = load_config(config_file(dataset), [*settings, "assign.agent=greedy", *options.overrides])
    pipeline = Pipeline.from_config(config)
    if pipeline.coarse is None:
        raise MissingDataError(f"{options.dataset} has no coarse model", "Leave mode as it is.")
    labels = work / "labels"
    labels.mkdir(exist_ok=True)
    cases = [
        LabelledCase(
            case.name,
            find_cases(case.image, pipeline.fine.channels)[0].files,
            merged_file(case.reference, dataset.merged, labels),
        )
        for case in find_case_files(dataset, options.data)
        if case.split == "test" and case.image is not None
    ]
    outcome = OutcomeSettings(variants=options.variants, regions=options.regions)
    models = (pipeline.coarse, pipeline.fine)
    made = how_made(cases, *models, config, FEATURES, outcome, 0)
    instances = cached_instances(
        work / f"{options.dataset}-cases.h5",
        made,
        lambda: build_instances(
            cases,
            *models,
            config,
            FEATURES,
            outcome,
            split=False,
            progress=lambda done, total: console.print(f"instances of {done} of {total} cases", highlight=False),
        ),
    )
    there = {instance.case for instance in instances}
    if len(there) < FEWEST_CASES:
        raise MissingDataError(
            f"{options.dataset}: {len(there)} test cases have regions, and {FEWEST_CASES} are needed",
            "Take a data set of more cases, or lower rois.threshold.",
        )
    folds, weights = min(options.folds, len(there)), QUICK_LAMBDAS if options.quick else LAMBDAS
    found = decide(instances, dataset.quality, weights, options.kinds, options.seeds, folds, console, few=options.quick)
    return {
        "dataset": options.dataset,
        "metric": dataset.quality,
        "cases": len(there),
        "folds": folds,
        "regions": {one.name: len(one.tree.rois) for one in instances},
        "summary": compare(found, options.kinds),
        "rows": [one.row() for one in found],
        "environment": environment(),
        "command": shlex.join(["python", "benchmarks/decide.py", *options.arguments]),
    }


def show(results: Mapping[str, Any], console: Console) -> None:
    """Shares of the oracle's reward, and each kind of agent beside the best rule."""
    for row in results["summary"]:
        shares = ", ".join(f"{name} {value:.3f}" for name, value in row["shares"].items() if value is not None)
        console.print(f"lambda {row['lambda']:g}: {shares}", highlight=False, soft_wrap=True)
        for kind, found in row["agents"].items():
            low, high = found["interval"] or (float("nan"), float("nan"))
            text = f"  {kind} less {row['best_rule']}: {found['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
            console.print(f"{text}: {found['verdict']}", highlight=False, soft_wrap=True)


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", required=True, help="with at least four test cases")
    add("--out", type=Path, required=True, metavar="FILE", help="JSON file for all figures")
    add("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="of agents (default: all)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of trainings (default: 0 1 2)")
    add("--folds", type=int, default=3, metavar="N", help="parts that the test cases are divided into (3)")
    add("--variants", type=int, default=3, metavar="N", help="trees per case, with perturbed thresholds (3)")
    add("--regions", type=int, default=6, metavar="N", help="random sub-volumes per tree (6)")
    add("--quick", action="store_true", help="train for one step, to see whether everything works")
    add("--data", type=Path, metavar="DIR", help="where the data lie, if not where the data set's file says")
    add("--work", type=Path, metavar="DIR", help="keep the instances there (default: nowhere)")
    add("--models", default="ours", help="ours: benchmarks/models, then ../shared/models; shared; or a folder")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting")
    return parser


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure, write, show."""
    check_writable(options.out, overwrite=True)
    with work_folder(options.work) as work:
        results = measure(options, work, console)
    with atomic_write(options.out) as path:
        path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    show(results, console)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    if options.folds < 2 or options.variants < 1 or options.regions < 0:
        parser.error("--folds is at least 2, --variants at least 1, --regions at least 0")
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)
    keep_freed_memory()
    return exit_code(lambda: run(options, console), console)


if __name__ == "__main__":
    sys.exit(main())
