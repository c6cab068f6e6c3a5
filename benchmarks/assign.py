"""How well rules and trained agents choose regions, on cases that no agent has seen, beside the best choice there is.

    python benchmarks/assign.py --dataset em --out em.json --plots pictures
    python benchmarks/assign.py --dataset synthetic --train --ablations --out synthetic.json

Every region of the test case's trees is segmented once; then the reward of any selection is counted (``Instance``).
Two sets are reported: ``case``, the whole case with the configured thresholds, and ``trees``, that and others with
perturbed thresholds and in sub-volumes. Made-up instances have only the latter. Agents are found in
``benchmarks/agents/<dataset>``; ``--train`` trains those that are missing, as ``c2f-train`` does.

Of agents with several seeds the mean and range are what counts: the best one of them is known only afterwards.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console

from assignnet import NO_FEATURES, RULES, Assigner, CostModel, Features, Roi, RoiTree
from assignnet.choice.rules import greedy, in_space_order
from assignnet.learn.agent import AgentCard, load_agent
from assignnet.value.evaluate import Row, evaluate, summarise
from assignnet.value.instance import Instance
from assignnet.value.oracle import Choice, oracle
from assignnet.value.voxel_counts import Metric
from benchmarks.common.machine import ROOT, environment, work_folder
from benchmarks.common.registry import exit_code
from benchmarks.selection.measures import (
    HELD_OUT,
    KINDS,
    MADE_UP,
    ORDER_WEIGHT,
    QUICK_MADE_UP,
    RealCase,
    agent_share,
    choose,
    compare_orders,
    held_out,
    look,
    made_up,
    open_case,
    train_all,
)
from benchmarks.selection.plots import draw_orders, draw_pareto, draw_selection, show_all, statements
from coarse2fine.errors import C2FError
from coarse2fine.io import atomic_write, check_writable
from coarse2fine.selection.features import FeatureSettings
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.training.outcomes import OutcomeSettings

METRICS: Mapping[str, Metric] = {"lung": "dice", "em": "iou", "ms": "dice", "synthetic": "dice"}
"""Quality by which each data set is judged, and for which its agents are trained."""
LAMBDAS, ABLATION_LAMBDAS, QUICK_LAMBDAS = (
    (0.01, 0.03, 0.05, 0.1, 0.1275, 0.2, 0.5), (0.03, 0.05, 0.1275), (0.05, 0.2),
)  # fmt: skip
TEACH, QUICK_TEACH = (
    OutcomeSettings(variants=3, regions=6, most=1000),
    OutcomeSettings(variants=1, regions=1, most=1000),
)
ALL_FEATURES = FeatureSettings(global_info=True)
GAP = 1e-4
"""The oracle counts as proven to be the best where no more reward than this lies between it and its bound."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Somebody who chooses.

    Attributes:
        name: Of the rule, or of the agent's folder.
        assigner: Chooses.
        seed: Of the agent's training; None for rules.
        card: The agent's; None for rules.
        shown: Feature settings of an agent for real cases.
    """

    name: str
    assigner: Assigner
    seed: int | None = None
    card: AgentCard | None = None
    shown: FeatureSettings | None = None

    @property
    def kind(self) -> str:
        """What agents of several seeds have in common."""
        return self.name if self.seed is None else self.name.removesuffix(f"-seed{self.seed}")


def greedy_drop(tree: RoiTree, cost_model: CostModel, features: Features = NO_FEATURES) -> tuple[Roi, ...]:
    """The rule ``greedy`` where it may leave regions out."""
    return greedy(tree, replace(cost_model, drop=True), features)


def all_policies(folder: Path, real: RealCase | None) -> list[Policy]:
    """Rules, and the agents found in a folder.

    Raises:
        ModelError: If an agent cannot be read, or does not fit the case.
    """
    policies = [Policy(name, rule) for name, rule in RULES.items()] + [Policy("greedy_drop", greedy_drop)]
    for path in sorted(folder.glob("*/agent.json")):
        name, seed = path.parent.name, re.search(r"-seed(\d+)$", path.parent.name)
        try:
            agent = load_agent(path.parent)
        except ValueError as error:
            raise C2FError(str(error)) from error
        number = int(seed[1]) if seed else int(agent.card.training.get("settings", {}).get("seed", 0))
        shown = real.selector(str(path.parent)).features if real else None
        policies.append(Policy(name, agent, number, agent.card, shown))
    return policies


def leaders(policies: Sequence[Policy]) -> list[Policy]:
    """Of each kind of agent that is no ablation the one with the lowest seed."""
    found: dict[str, Policy] = {}
    for policy in sorted((one for one in policies if one.seed is not None), key=lambda one: one.seed or 0):
        if policy.kind in KINDS:
            found.setdefault(policy.kind, policy)
    return [found[kind] for kind in KINDS if kind in found]


def strip(instance: Instance, card: AgentCard) -> Instance:
    """An instance with those features only that an agent was trained with."""
    nodes, volume = instance.features.nodes, instance.features.volume
    if not card.network.features:
        nodes = np.zeros((len(nodes), 0), np.float32)
    if not card.network.volume:
        volume = NO_FEATURES.volume
    return replace(instance, features=Features(nodes, volume))


def source_of(shown: FeatureSettings | None) -> FeatureSettings:
    """Settings of the instances from which an agent's features can be taken by ``strip``."""
    if shown is None or shown.source == "none":
        return ALL_FEATURES
    mode = ALL_FEATURES.downsample_mode if shown.source == "coarse" else shown.downsample_mode
    return replace(shown, downsample_mode=mode, global_info=True)


def seen_by(
    policy: Policy, instances: Sequence[Instance], build: Callable[[FeatureSettings], Sequence[Instance]]
) -> list[Instance]:
    """The instances as an agent is shown them; outcomes stay those of ``instances``, so that all are judged alike.

    Args:
        policy: A rule or an agent.
        instances: Built with ``ALL_FEATURES``.
        build: The same instances with features of other settings.
    """
    if policy.card is None:
        return list(instances)
    shown, source = list(instances), source_of(policy.shown)
    if source != ALL_FEATURES:
        features = {other.name: other.features for other in build(source)}
        shown = [replace(instance, features=features[instance.name]) for instance in shown]
    return [strip(instance, policy.card) for instance in shown]


def solve(
    instances: Sequence[Instance], metric: Metric, weights: Sequence[float]
) -> dict[tuple[Instance, float], tuple[Choice, float]]:
    """The oracle's choices, and the seconds that each took."""
    found = {}
    for instance in instances:
        for weight in weights:
            began = perf_counter()
            choice = oracle(instance, metric, weight)
            found[instance, weight] = choice, perf_counter() - began
    return found


def measure(
    policies: Sequence[Policy],
    instances: Sequence[Instance],
    metric: Metric,
    weights: Sequence[float],
    sets: Mapping[str, int],
    build: Callable[[FeatureSettings], Sequence[Instance]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Let the oracle and everybody else choose; returns one row per policy, set and lambda, and the oracle's gaps.

    Args:
        policies: Rules and agents.
        instances: Built with ``ALL_FEATURES``.
        metric: Quality that counts.
        weights: Values of lambda.
        sets: How many of the first instances belong to each set.
        build: See ``seen_by``.
    """
    solved = solve(instances, metric, weights)
    best = {(id(instance.tree), weight): choice for (instance, weight), (choice, _) in solved.items()}
    ideal = Policy("oracle", lambda tree, costs, features=NO_FEATURES: best[id(tree), costs.weight].selection)
    rows: list[dict[str, Any]] = []
    for policy in (ideal, *policies):
        seen = seen_by(policy, instances, build)
        pairs = list(zip(seen, instances, strict=True))
        known = {(own, weight): solved[instance, weight][0] for own, instance in pairs for weight in weights}
        found = evaluate(policy.assigner, seen, metric, weights, known=known)
        if policy is ideal:
            found = [replace(row, choose_s=taken) for row, (_, taken) in zip(found, solved.values(), strict=True)]
        rows += summaries(policy, found, sets, len(weights))
    gaps = [
        gap(weight, [choice for (_, other), (choice, _) in solved.items() if other == weight]) for weight in weights
    ]
    return rows, gaps


def summaries(policy: Policy, found: Sequence[Row], sets: Mapping[str, int], weights: int) -> list[dict[str, Any]]:
    """Rows of the JSON: means over the instances of each set."""
    head = {"policy": policy.name, "kind": policy.kind, "seed": policy.seed}
    rows = []
    for name, count in sets.items():
        for weight, summary in summarise(found[: count * weights]).items():
            figures = {key: finite(value) for key, value in asdict(summary).items()}
            rows.append(head | {"lambda": weight, "set": name} | figures)
    return rows


def gap(weight: float, choices: Sequence[Choice]) -> dict[str, Any]:
    """How far the oracle's choices may be from the best ones at most."""
    gaps = [choice.bound - choice.reward for choice in choices]
    certified = sum(one <= GAP for one in gaps)
    return {"lambda": weight, "mean": fmean(gaps), "worst": max(gaps), "certified": certified, "of": len(gaps)}


def finite(value: float) -> float | None:
    """A number, or None where JSON has none for it: where the oracle earns nothing, a share of it means nothing."""
    return value if isfinite(value) else None


def real_figures(options: argparse.Namespace, real: RealCase, policies: Sequence[Policy]) -> dict[str, Any]:
    """What only real runs tell, and pictures of the case."""
    folder, default = options.agents / options.dataset, real.pipeline.config.assign.agent
    agents = {Path(default).name: default} | {one.name: str(folder / one.name) for one in leaders(policies)}
    figures: dict[str, Any] = {"agent_share": agent_share(real, agents, 1 if options.quick else 3)}
    if not (options.order or options.plots):
        return figures
    name = next((one for one in agents if one.startswith(KINDS[0])), Path(default).name)
    seen = look(real)
    if options.order:
        figures |= {"order": compare_orders(real, seen, agents[name]), "order_agent": name}
    if options.plots:
        chosen = choose(real, seen, agents[name], ORDER_WEIGHT)
        orders = {name: chosen, "in space": in_space_order(chosen, real.pipeline.stage.plan.slot)}
        aspect = real.pipeline.fine.spacing[1] / real.pipeline.fine.spacing[2]
        title = f"{real.labelled.name}: {name} at lambda {ORDER_WEIGHT:g}"
        picture = (seen.image, seen.truth, seen.tree)
        draw_selection(options.plots / f"selection-{real.name}.png", *picture, chosen, aspect, title)
        draw_orders(options.plots / f"order-{real.name}.png", *picture, orders, aspect)
    return figures


def benchmark(options: argparse.Namespace, work: Path, console: Console) -> dict[str, Any]:
    """Everything that the options ask for, ready for JSON."""
    weights, metric = QUICK_LAMBDAS if options.quick else LAMBDAS, options.metric
    real = (
        None
        if options.dataset == "synthetic"
        else open_case(options.dataset, options.models, options.overrides, options.data)
    )
    commands = train_all(options, console)
    policies = all_policies(options.agents / options.dataset, real)
    settings = QUICK_TEACH if options.quick else TEACH
    if real is None:
        instances = made_up(*(QUICK_MADE_UP if options.quick else MADE_UP), HELD_OUT)
    else:
        instances = held_out(real, ALL_FEATURES, settings, work)
    sets = ({} if real is None else {"case": 1}) | {"trees": len(instances)}

    def build(features: FeatureSettings) -> Sequence[Instance]:
        return instances if real is None else held_out(real, features, settings, work)

    rows, gaps = measure(policies, instances, metric, weights, sets, build)
    results = {
        "dataset": options.dataset,
        "metric": metric,
        "lambdas": weights,
        "quick": options.quick,
        "instances": [{"name": one.name, "regions": len(one.tree.rois)} for one in instances],
        "rows": rows,
        "oracle_gap": gaps,
        "statements": statements(rows),
        "agents": {one.name: describe(one.card) for one in policies if one.card},
        "trainings": commands,
        "config": None if real is None else real.settings(),
        "environment": environment(),
        "command": shlex.join(["python", "benchmarks/assign.py", *options.arguments]),
    }
    if options.plots:
        draw_pareto(results, options.plots / f"pareto-{options.dataset}.png")
    return results | ({} if real is None else real_figures(options, real, policies))


def describe(card: AgentCard) -> dict[str, Any]:
    """What of an agent's card matters here."""
    return {
        "kind": card.kind,
        "network": card.network.to_dict(),
        "features": dict(card.features),
        "metric": card.metric,
        "lambdas": card.weights,
        "settings": card.training.get("settings"),
        "instances": card.training.get("instances"),
        "validation": dict(card.metrics),
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--dataset", required=True, choices=sorted(METRICS), help="whose test case, or made-up instances")
    add("--out", type=Path, required=True, metavar="FILE", help="JSON file for all figures")
    add("--data", type=Path, metavar="DIR", help="where the data lie, if not where the data set's file says")
    add("--plots", type=Path, metavar="DIR", help="draw pictures into this folder")
    add("--train", action="store_true", help="first train the agents that are missing, of both kinds and all seeds")
    add("--ablations", action="store_true", help="first train the ablations that are missing, seed 0")
    add("--order", action="store_true", help="also real runs with regions in several orders")
    add("--quick", action="store_true", help="tiny settings, to see whether everything works")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of trainings (default: 0 1 2)")
    add("--agents", type=Path, default=ROOT / "benchmarks" / "agents", metavar="DIR", help="holds DATASET/NAME")
    add("--work", type=Path, metavar="DIR", help="keep the test case's instances there (default: nowhere)")
    add("--models", default="ours", help="ours: benchmarks/models, then ../shared/models; shared; or a folder")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting")
    return parser


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure, write, show."""
    check_writable(options.out, overwrite=True)
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
    with work_folder(options.work) as work:
        results = benchmark(options, work, console)
    with atomic_write(options.out) as path:
        path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for table in show_all(results, ABLATION_LAMBDAS):
        console.print(table)
    console.print("\n".join(results["statements"]), highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    options.metric = METRICS[options.dataset]
    if options.order and options.dataset == "synthetic":
        parser.error("--order needs a real test case")
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)
    keep_freed_memory()
    return exit_code(lambda: run(options, console), console)


if __name__ == "__main__":
    sys.exit(main())
