"""The benchmark of choosing, on made-up instances and a tiny case with tiny models; real data are never run here."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from assign_examples import random_instance
from conftest import benchmark_module, blobs, write_agent
from raw_data import save_case
from rich.console import Console

from assignnet import RULES
from assignnet.choice.tree import Features
from assignnet.learn.agent import Agent, AgentCard, save_agent
from assignnet.learn.network import AssignNetwork, NetworkSize
from coarse2fine.cli import train as train_cli
from coarse2fine.evaluation.masks import dice
from coarse2fine.io import read_volume
from coarse2fine.pipeline import Pipeline
from coarse2fine.selection.features import FeatureSettings

FIELDS = {
    "policy", "kind", "lambda", "set", "seed", "reward", "oracle_fraction", "quality", "slots", "seconds",
    "invalid_actions", "choose_s", "selected", "dropped", "bound",
}  # fmt: skip
ALL_RULES = {*RULES, "greedy_drop"}
TINY = ["--set", "rois.threshold=0.58", "--set", "rois.window_step=0.5", "--set", "fine.grow=0"]


script = benchmark_module("assign")


def agent(features: int, volume: int, **changes: Any) -> Agent:
    """An untrained agent."""
    size = NetworkSize(features, volume, width=8, layers=1, heads=1)
    edges = {"packing": "same_size", "large": "resize", "slot": [6, 6, 6], "native": [6, 6, 6]}
    seen = {"source": "none", "fingerprint": None}
    card = AgentCard("policy", size, seen, edges, "dice", (0.01, 0.5), {}, {})
    return Agent(replace(card, **changes), AssignNetwork(size))


def lines(results: dict[str, Any], where: str, policy: str) -> dict[float, dict[str, Any]]:
    """Rows of one policy by lambda."""
    return {row["lambda"]: row for row in results["rows"] if (row["set"], row["policy"]) == (where, policy)}


@pytest.mark.long
def test_main__synthetic_with_training__measures_rules_oracle_and_agents(script: ModuleType, tmp_path: Path) -> None:
    """Every policy has a row per lambda, the oracle has all of its own reward, and nobody breaks the rules."""
    out, agents = tmp_path / "results.json", tmp_path / "agents"
    command = [
        "--dataset",
        "synthetic",
        "--quick",
        "--out",
        str(out),
        "--agents",
        str(agents),
        "--plots",
        str(tmp_path),
    ]
    assert script.main([*command, "--train", "--seeds", "4"]) == 0
    results = json.loads(out.read_text())
    trained = {"policy-seed4", "gains-seed4"}
    found = {row["policy"] for row in results["rows"]}
    assert found == {*ALL_RULES, "oracle", *trained}
    for name in found:
        rows = lines(results, "trees", name)
        assert list(rows) == [0.05, 0.2]
        for row in rows.values():
            assert row.keys() >= FIELDS
            assert row["invalid_actions"] == 0
            assert row["reward"] <= row["bound"] + 1e-9
            assert row["seed"] == (4 if name in trained else None)
            assert row["oracle_fraction"] == pytest.approx(1) if name == "oracle" else row["oracle_fraction"] <= 1
    assert all(gap["worst"] >= gap["mean"] >= 0 and gap["of"] == 5 for gap in results["oracle_gap"])
    assert (tmp_path / "pareto-synthetic.png").read_bytes().startswith(b"\x89PNG")


def test_train_all__finished_agents__are_not_trained_again(script: ModuleType, tmp_path: Path) -> None:
    """Agents that are there stay as they are, and their commands are reported all the same."""
    options = script.build_parser().parse_args(
        ["--dataset", "synthetic", "--out", "x", "--train", "--quick", "--seeds", "0"]
    )
    options.agents = tmp_path
    for name in ("policy-seed0", "gains-seed0"):
        (tmp_path / "synthetic" / name).mkdir(parents=True)
        (tmp_path / "synthetic" / name / "agent.json").write_text("finished")
    assert script.train_all(options, Console(quiet=True)) == ["synthetic policy-seed0", "synthetic gains-seed0"]
    assert {path.read_text() for path in tmp_path.rglob("*.*")} == {"finished"}


def test_measure__all_children__has_the_mean_of_its_instances_figures(script: ModuleType) -> None:
    """Rows are means over the instances of their set, counted here from the instances themselves."""
    instances = [random_instance(seed) for seed in range(4)]
    policies = [script.Policy("all_children", RULES["all_children"])]
    rows, gaps = script.measure(policies, instances, "iou", (0.1,), {"case": 1, "trees": 4}, lambda _: instances)
    for where, count in (("case", 1), ("trees", 4)):
        part = instances[:count]
        row = lines({"rows": rows}, where, "all_children")[0.1]
        assert row["reward"] == pytest.approx(np.mean([one.reward(one.tree.leaves, "iou", 0.1) for one in part]))
        leaves = [one.chosen(one.tree.leaves) for one in part]
        quality = [one.outcomes.quality(chosen, "iou") for one, chosen in zip(part, leaves, strict=True)]
        assert row["quality"] == pytest.approx(np.mean(quality))
        slots = [one.slots[chosen].sum() for one, chosen in zip(part, leaves, strict=True)]
        assert row["slots"] == pytest.approx(np.mean(slots))
        assert row["seconds"] == pytest.approx(np.mean(slots) * 0.01)
    assert [gap["of"] for gap in gaps] == [4]


def test_greedy_drop__high_weight__leaves_out_what_greedy_keeps(script: ModuleType) -> None:
    """The rule may drop regions, and keeps what is worth more than its cost."""
    instance = random_instance(3)
    cost_model = instance.weighted(1.0).cost_model
    kept, dropping = RULES["greedy"](instance.tree, cost_model), script.greedy_drop(instance.tree, cost_model)
    assert set(dropping) < set(kept)
    assert dropping


def test_all_policies__agents_of_several_names__get_seed_and_kind(script: ModuleType, tmp_path: Path) -> None:
    """The seed is read from the folder's name, else from the card, and is no part of the kind."""
    for name in ("policy-network-seed12", "mine"):
        save_agent(tmp_path / name, agent(0, 0, training={"settings": {"seed": 7}}))
    found = {policy.name: policy for policy in script.all_policies(tmp_path, None)}
    assert found.keys() == {*ALL_RULES, "policy-network-seed12", "mine"}
    assert (found["policy-network-seed12"].seed, found["policy-network-seed12"].kind) == (12, "policy-network")
    assert (found["mine"].seed, found["mine"].kind) == (7, "mine")
    assert (found["greedy"].seed, found["greedy"].kind) == (None, "greedy")
    assert script.leaders(list(found.values())) == [], "ablations and agents of other names stand for no kind"


@pytest.mark.parametrize(("features", "volume"), [(0, 0), (5, 0), (0, 4), (5, 4)])
def test_strip__card__leaves_what_the_agent_was_trained_with(script: ModuleType, features: int, volume: int) -> None:
    """Features that the network does not take are gone, the others are unchanged, and the agent accepts them."""
    instance = random_instance(0, features=5, volume=4)
    stripped = script.strip(instance, agent(features, volume).card)
    regions = len(instance.tree.rois)
    assert stripped.features.nodes.shape == (regions, features)
    assert stripped.features.volume.shape == (volume,)
    assert not features or np.array_equal(stripped.features.nodes, instance.features.nodes)
    assert not volume or np.array_equal(stripped.features.volume, instance.features.volume)
    assert (stripped.tree, stripped.outcomes) == (instance.tree, instance.outcomes)
    agent(features, volume)(stripped.tree, stripped.cost_model, stripped.features)


def test_seen_by__other_pooling__takes_features_by_name_and_keeps_outcomes(script: ModuleType) -> None:
    """Instances with other features replace features only, whatever their order."""
    instances = [random_instance(seed, features=3) for seed in range(2)]
    others = [
        replace(one, features=Features(one.features.nodes + 1, one.features.volume), seconds_per_slot=99.0)
        for one in reversed(instances)
    ]
    asked = []

    def build(settings: FeatureSettings) -> Any:
        asked.append(settings)
        return others

    shown = FeatureSettings("coarse", "resize", "mean")
    policy = script.Policy("p", agent(3, 0), 0, agent(3, 0).card, shown)
    seen = script.seen_by(policy, instances, build)
    assert asked == [FeatureSettings("coarse", "center", "mean", global_info=True)]
    for one, before in zip(seen, instances, strict=True):
        assert np.array_equal(one.features.nodes, before.features.nodes + 1)
        assert (one.name, one.outcomes, one.seconds_per_slot) == (before.name, before.outcomes, 0.01)


def test_statements__agents_above_and_below__are_told_apart(script: ModuleType) -> None:
    """Means over seeds and the best agent are compared with the best rule, not with the oracle."""
    head = {"set": "case", "lambda": 0.1}
    rules = [("oracle", 0.9), ("greedy", 0.5), ("greedy_drop", 0.6)]
    rows = [head | {"policy": name, "kind": name, "seed": None, "reward": reward} for name, reward in rules]
    assert script.statements(rows) == ["there are no agents to compare with the rules: add --train"]
    for seed, reward in enumerate((0.4, 0.7)):
        rows.append(head | {"policy": f"policy-seed{seed}", "kind": "policy", "seed": seed, "reward": reward})
    first, second = script.statements(rows)
    assert first.endswith("below greedy_drop at lambda 0.1 by 0.0500")
    assert "policy-seed1" in second
    assert "at or above every rule at lambda 0.1" in second
    assert second.endswith("greedy_drop, by 0.1000")


def test_main__missing_data__says_so(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the data a message names what is missing, with an exit code of its own."""
    assert script.main(["--dataset", "em", "--data", str(tmp_path), "--out", str(tmp_path / "x.json")]) == 2
    assert "no test case of 'em'" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.fixture
def tiny(script: ModuleType, model_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    """A tiny case and models in the place of the MS data; returns the options that lead there."""
    image = blobs((24, 48, 48))
    data, models = tmp_path / "data" / "Dataset102_MSLesion", tmp_path / "models" / "Dataset102_MSLesion"
    save_case(data, "Ts", "ms_26", image, image > np.percentile(image, 80))
    coarse, fine = model_folder(seed=5, spacing=(4.0, 2.0, 2.0)), model_folder(seed=6, transpose=(1, 0, 2))
    for stage, folder in (("lowres", coarse), ("fullres", fine)):
        shutil.copytree(folder, models / f"nnUNetTrainer__smallPlans__3d_{stage}")
    agents = {
        "policy-seed1": FeatureSettings(),
        "gains-seed0": FeatureSettings(global_info=True),
        "policy-network_mean-seed0": FeatureSettings(pooling_mode="mean"),
        "policy-network-seed0": FeatureSettings("coarse"),
    }
    for name, features in agents.items():
        folder = tmp_path / "agents" / "ms" / name
        write_agent(folder, (coarse, fine), features=features, kind=name.partition("-")[0])
    return ["--data", str(data), "--models", str(tmp_path / "models"), "--agents", str(tmp_path / "agents"), *TINY]


def real_dice(script: ModuleType, tiny: list[str], folder: Path) -> float:
    """Dice of a plain run of the pipeline with the agent whose regions are put in order."""
    options = script.build_parser().parse_args(["--dataset", "ms", "--out", "x.json", *tiny])
    real = script.open_case("ms", options.models, options.overrides, options.data)
    agent = str(folder / "agents" / "ms" / "policy-seed1")
    pipeline = Pipeline(real.config(agent, script.ORDER_WEIGHT), real.coarse, real.pipeline.fine)
    labels = pipeline(read_volume(list(real.labelled.images))).labels
    return dice(labels > 0, read_volume([real.labelled.labels]).channels[0] > 0)


@pytest.mark.long
def test_main__tiny_case__measures_real_runs_of_every_agent(
    script: ModuleType, tiny: list[str], tmp_path: Path
) -> None:
    """Agents with any features are measured, orders are permutations of the same regions, and pictures are drawn."""
    out = tmp_path / "results.json"
    command = ["--dataset", "ms", "--quick", "--order", "--plots", str(tmp_path), "--work", str(tmp_path / "work")]
    assert script.main([*command, "--out", str(out), *tiny]) == 0
    results = json.loads(out.read_text())
    agents = {"policy-seed1", "gains-seed0", "policy-network_mean-seed0", "policy-network-seed0"}
    assert {row["policy"] for row in results["rows"]} == {*ALL_RULES, "oracle", *agents}
    assert {row["set"] for row in results["rows"]} == {"case", "trees"}
    assert not any(row["invalid_actions"] for row in results["rows"])
    assert lines(results, "case", "oracle")[0.05]["instances"] == 1
    assert {path.name for path in (tmp_path / "work").iterdir()} == {
        "ms-coarse-center-max.h5", "ms-coarse-center-mean.h5",
    }  # fmt: skip
    assert results["agent_share"].keys() == {"greedy", "policy-seed1", "gains-seed0"}
    assert all(0 < share["share"] < 1 for share in results["agent_share"].values())
    assert results["order_agent"] == "policy-seed1"
    assert [row["order"] for row in results["order"]] == ["agent", "space", "random-0", "random-1", "random-2"] * 4
    assert len({row["boxes"] for row in results["order"]}) == 1
    assert results["order"][0]["dice"] == pytest.approx(real_dice(script, tiny, tmp_path))
    for name in ("pareto", "selection", "order"):
        assert (tmp_path / f"{name}-ms.png").read_bytes().startswith(b"\x89PNG")


def test_train_arguments__ablation__are_those_of_c2f_train(script: ModuleType, tiny: list[str], tmp_path: Path) -> None:
    """What is passed to c2f-train is understood by it, and names data, models, kind, metric and seed."""
    order = importlib.import_module("benchmarks.selection.measures")
    options = script.build_parser().parse_args(["--dataset", "ms", "--out", "x.json", *tiny])
    options.metric = "dice"
    training = order.Training("policy", 0, "start_label")
    arguments = order.train_arguments(options, training, tmp_path / training.name)
    found = train_cli.build_parser().parse_args(arguments)
    assert (found.kind, found.metric, found.seed, found.steps) == ("policy", "dice", 0, None)
    assert found.cases.resolve() == tmp_path / "data" / "Dataset102_MSLesion"
    assert found.coarse_model.name.endswith("lowres")
    assert found.fine_model.name.endswith("fullres")
    assert found.output.resolve() == tmp_path / "policy-start_label-seed0"
    assert "assign.start_label=true" in found.overrides
    assert "rois.threshold=0.58" in found.overrides
