"""c2f-train with tiny models: an agent that c2f-infer can use, and what it says about everything that can be wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import blobs
from raw_data import save_volume

from assignnet import RULES
from assignnet.learn.agent import load_agent
from assignnet.learn.train import TrainSettings, checked_weights
from assignnet.value.instance import Instance, read_instances
from coarse2fine.cli import infer as cli
from coarse2fine.cli import train as train_cli
from coarse2fine.cli import train_run as training
from coarse2fine.io import find_labelled_cases, read_volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.preprocessing.labels import read_labels

SHAPE = (12, 32, 32)
SMALL = ["--variants", "1", "--regions", "1", "--steps", "2", "--warm-start", "1"]


@dataclass(frozen=True)
class Lab:
    """Models, labelled cases, and the options that find regions with them."""

    coarse: Path
    fine: Path
    data: Path

    @property
    def models(self) -> list[str]:
        names = ["--coarse-model", str(self.coarse), "--fine-model", str(self.fine), "--device", "cpu"]
        return [*names, "--set", "rois.threshold=0.58", "--set", "canvas.packing=same_size"]

    def train(self, output: Path, *options: object) -> int:
        arguments = ["--cases", self.data, "-o", output, *self.models, *SMALL, *options]
        return train_cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def lab(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The true labels are those that the fine model gives if it looks at everything, so that regions are worth it."""
    data = tmp_path_factory.mktemp("raw")
    made = Lab(model_folder(seed=5, spacing=(4.0, 2.0, 2.0)), model_folder(seed=10), data)
    for index in range(2):
        save_volume(data / "imagesTr" / f"c{index}_0000.nii.gz", blobs(SHAPE, seed=index))
    arguments = ["-i", str(data / "imagesTr"), "-o", str(data / "labelsTr"), "--mode", "one-stage", *made.models]
    assert cli.main(arguments) == 0
    return made


@pytest.fixture(scope="module")
def trained(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent that lies in a folder with its training's files."""
    folder = tmp_path_factory.mktemp("trained") / "agent"
    assert lab.train(folder) == 0
    return folder


@pytest.fixture
def agent(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "agent"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("instances are built again")


# --- what works ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.long) for kind in ("gains", "policy")])
def test_main__two_labelled_volumes__gives_an_agent_that_c2f_infer_uses(
    lab: Lab, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Agent and training lie in the folder, a run's report names it, and its card says where it is from."""
    agent, report, out = tmp_path / "new" / "agent", tmp_path / "report.json", tmp_path / "out.nii.gz"
    assert lab.train(agent, "--kind", kind) == 0
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == f"written: {agent}; use it with --set assign.agent={agent}"
    assert sorted(path.name for path in agent.iterdir()) == ["agent.json", "training", "weights.safetensors"]
    files = {path.name for path in (agent / "training").iterdir()}
    assert files == ({"instances.h5"} if kind == "gains" else {"instances.h5", "tensorboard"})

    card = load_agent(agent).card
    instances, made = read_instances(agent / "training" / "instances.h5")
    assert (card.kind, card.weights, card.metric) == (kind, (0.01, 0.5), "dice")
    assert card.training["made"] == made
    assert made["cases"] == ["c0", "c1"]
    assert sum(card.training["instances"].values()) == len(instances) > 3
    assert str(tmp_path) not in (agent / "agent.json").read_text(), "where folders lie is nobody's business"

    options = ["--set", f"assign.agent={agent}", "--set", "assign.lambda=0.02", "--report", str(report)]
    source = lab.data / "imagesTr" / "c0_0000.nii.gz"
    assert cli.main(["-i", str(source), "-o", str(out), *lab.models, *options]) == 0
    assert json.loads(report.read_text())["agent"] == {"name": str(agent), "kind": kind}
    assert "agent" not in capfd.readouterr().err, "no warning that it does not fit"
    assert sitk.ReadImage(str(out)).GetSize() == SHAPE[::-1]


def test_main__table__compares_the_agent_with_all_rules(
    lab: Lab, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line for the agent and one per rule, at the weights that the range is checked at; the card has the same."""
    assert lab.train(tmp_path / "agent", "--lambdas", "0.01", "90") == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("│")]
    table = {name.strip(): [cell.strip() for cell in cells] for _, name, *cells, _ in (x.split("│") for x in lines)}
    assert list(table) == ["this agent", *RULES]
    metrics = load_agent(tmp_path / "agent").card.metrics
    weights = [f"{weight:.3g}" for weight in checked_weights(TrainSettings(weights=(0.01, 90.0)))]
    known = [f"oracle_fraction_at_{weight}" for weight in weights]
    assert table["this agent"] == [f"{metrics[name]:.3f}" if name in metrics else "-" for name in known]
    assert known[0] in metrics
    assert known[-1] not in metrics, "where doing nothing is best there is no share of it"


@pytest.mark.long
def test_main__overwrite__trains_anew_from_the_same_instances(
    lab: Lab, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent is replaced by one of other settings; what took long, the instances, is kept."""
    before = content(agent)
    monkeypatch.setattr(training, "build_instances", refuse)
    assert lab.train(agent, "--overwrite", "--steps", 3, "--kind", "gains") == 0
    after = content(agent)
    assert after["training/instances.h5"] == before["training/instances.h5"]
    assert after["weights.safetensors"] != before["weights.safetensors"]
    assert lab.train(agent, "--overwrite") == 0
    assert content(agent)["weights.safetensors"] == before["weights.safetensors"], "the same seed, the same agent"


@pytest.mark.long
def test_main__other_instances_are_asked_for__builds_them(
    lab: Lab, agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instances of other settings are not taken for these."""
    built: list[list[Instance]] = []
    real = training.build_instances
    monkeypatch.setattr(
        training, "build_instances", lambda *args, **opts: built.append(real(*args, **opts)) or built[-1]
    )
    assert lab.train(agent, "--overwrite", "--regions", 2) == 0
    assert len(built) == 1
    assert load_agent(agent).card.training["made"]["settings"]["regions"] == 2


@pytest.mark.long
def test_main__instances_in_a_file_of_their_own__serve_several_agents(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents of other seeds, kinds and metrics learn from what was built once."""
    shared = tmp_path / "new" / "shared.h5"
    assert lab.train(tmp_path / "one", "--instances", shared) == 0
    monkeypatch.setattr(training, "build_instances", refuse)
    options = "--seed", 1, "--metric", "iou", "--kind", "policy"
    assert lab.train(tmp_path / "two", "--instances", shared, *options) == 0
    assert not list(tmp_path.glob("*/training/instances.h5"))


@pytest.mark.long
def test_main__configuration_names_the_agent_to_be__trains_it(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration of the runs to come can be used to train; its other settings count."""
    config = tmp_path / "mine.yaml"
    config.write_text("assign:\n  agent: mine\n  start_label: true\n  features: none\n")
    monkeypatch.chdir(tmp_path)
    assert lab.train(Path("mine"), "-c", config, "--kind", "gains") == 0
    card = load_agent(tmp_path / "mine").card
    assert card.network.start_label
    assert card.features["source"] == "none"
    options = ["-c", str(config), "--report", "report.json", *lab.models]
    assert cli.main(["-i", str(lab.data / "imagesTr" / "c0_0000.nii.gz"), "-o", "out.nii.gz", *options]) == 0
    assert json.loads(Path("report.json").read_text())["agent"]["kind"] == "gains"


def test_train_settings__options__all_arrive() -> None:
    """Every option that is about learning, and steps that depend on the kind."""
    parse = train_cli.build_parser().parse_args
    required = ["--cases", "a", "-o", "b"]
    options = ["--kind", "policy", "--metric", "iou", "--steps", "7", "--seed", "3", "--lambdas", "0.1", "0.2"]
    options += ["--warm-start", "4", "--order", "0.5"]
    assert training.train_settings(parse([*required, *options]), start_label=True) == TrainSettings(
        learning_rate=3e-4,
        kind="policy",
        metric="iou",
        steps=7,
        seed=3,
        weights=(0.1, 0.2),
        warm_start=4,
        order=0.5,
        start_label=True,
    )
    for kind, steps in training.STEPS.items():
        settings = training.train_settings(parse([*required, "--kind", kind]), start_label=False)
        assert (settings.steps, settings.weights) == (steps, (0.01, 0.5))


# --- interruptions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six rounds of few choices, with checkpoints after the second and fourth."""
    real = training.train_settings

    def settings(*arguments: Any, **options: Any) -> TrainSettings:
        changes = {"environments": 2, "round_steps": 8, "rounds_between_checks": 2, "steps": 2 * 8 * 6}
        return replace(real(*arguments, **options), **changes)

    monkeypatch.setattr(training, "train_settings", settings)


@pytest.mark.alone
@pytest.mark.usefixtures("short_rounds")
def test_main__interrupted_while_learning__goes_on_where_it_was(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No agent after SIGTERM; the same command then ends with the agent of an uninterrupted run."""
    from assignnet.learn.train import _Training

    assert lab.train(tmp_path / "whole", "--kind", "policy") == 0
    rounds, real = [], _Training._one_round

    def one_round(training: _Training) -> None:
        rounds.append(training._round)
        if len(rounds) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        real(training)

    monkeypatch.setattr(_Training, "_one_round", one_round)
    capfd.readouterr()
    assert lab.train(tmp_path / "agent", "--kind", "policy") == 143
    assert capfd.readouterr().err.startswith("interrupted: ")
    assert not (tmp_path / "agent" / "agent.json").exists()
    monkeypatch.setattr(training, "build_instances", refuse)
    assert lab.train(tmp_path / "agent", "--kind", "policy") == 0
    assert rounds == [0, 1, 2, 3, 2, 3, 4, 5]
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "agent")]
    assert weights[0] == weights[1]


@pytest.mark.long
@pytest.mark.usefixtures("short_rounds")
def test_main__unfinished_training_of_something_else__is_told(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With other settings it is not resumed, not even with --overwrite; the message names the file to remove."""
    from assignnet.learn.train import _Training

    real = _Training._one_round

    def one_round(training: _Training) -> None:
        if training._round == 3:
            raise KeyboardInterrupt
        real(training)

    with monkeypatch.context() as patch:
        patch.setattr(_Training, "_one_round", one_round)
        assert lab.train(tmp_path / "agent", "--kind", "policy") == 130
    capfd.readouterr()
    for options in (["--metric", "iou"], ["--regions", "2", "--overwrite"]):
        assert lab.train(tmp_path / "agent", "--kind", "policy", *options) == 1
        error = capfd.readouterr().err
        assert error.startswith(
            f"error: {tmp_path / 'agent' / 'training' / 'checkpoint.pt'} is of a training with other"
        )
        assert "remove it, or choose another folder" in error
    (tmp_path / "agent" / "training" / "checkpoint.pt").unlink()
    assert lab.train(tmp_path / "agent", "--kind", "policy", "--metric", "iou") == 0


def test_main__interrupted_while_building__begins_again(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the instances are not kept after a hang-up, nor taken for all."""

    def stop(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)

    with monkeypatch.context() as patch:
        patch.setattr(training, "build_instances", stop)
        assert lab.train(tmp_path / "agent") == 129
    assert content(tmp_path / "agent") == {}
    assert lab.train(tmp_path / "agent") == 0


# --- what is wrong ---------------------------------------------------------------------------------------------------


def told(lab: Lab, output: Path, options: list[object], capfd: pytest.CaptureFixture[str]) -> str:
    """The message of a run that fails; it is one message, not a traceback."""
    capfd.readouterr()
    assert lab.train(output, *options) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize("option", [[], ["--kind", "policy"], ["--lambdas", "0.1", "0.2"]])
def test_main__agent_exists__is_kept(
    lab: Lab, agent: Path, option: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    """A finished agent is replaced only if that is asked for."""
    before = content(agent)
    assert f"{agent} holds an agent" in (message := told(lab, agent, option, capfd))
    assert "Choose another folder, or add --overwrite" in message
    assert content(agent) == before
    training.prepare_output(agent, overwrite=True)


RANGE = ["--lambdas", "0.1", "0.5"]
WRONG = {
    "lambdas reversed": (["--lambdas", "0.5", "0.1"], "--lambdas 0.5 0.1 is no range", RANGE),
    "lambdas equal": (["--lambdas", "0.1", "0.1"], "--lambdas 0.1 0.1 is no range", RANGE),
    "lambda zero": (["--lambdas", "0", "0.1"], "--lambdas 0.0 0.1 is no range", RANGE),
    "lambda negative": (["--lambdas", "-1", "0.1"], "--lambdas -1.0 0.1 is no range", RANGE),
    "lambda nan": (["--lambdas", "nan", "0.1"], "--lambdas nan 0.1 is no range", RANGE),
    "lambda infinite": (["--lambdas", "0.1", "inf"], "--lambdas 0.1 inf is no range\n  Give two positive", RANGE),
    "no steps": (["--steps", "0"], "--steps is 0\n  It must be at least 1", ["--steps", "1"]),
    "no variants": (["--variants", "0"], "--variants is 0\n  It must be at least 1", ["--variants", "1"]),
    "seed negative": (["--seed", "-1"], "--seed is -1\n  It must be a whole number from 0 to", ["--seed", "0"]),
    "seed too large": (["--seed", str(1 << 32)], f"--seed is {1 << 32}\n", ["--seed", "4294967295"]),
    "unknown setting": (["--set", "rois.treshold=0.1"], "rois.treshold", []),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("kind", ["gains", "policy"])
def test_main__impossible_options__are_told_before_anything_is_written(
    lab: Lab, tmp_path: Path, name: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message names the option and its value, and what it may be is taken."""
    options, expected, mended = WRONG[name]
    message = told(lab, tmp_path / "agent", ["--kind", kind, *options], capfd)
    assert expected in message
    assert message.count("\n") >= 2, "the remedy is a line of its own"
    assert not (tmp_path / "agent").exists()
    parsed = train_cli.build_parser().parse_args(["--cases", "a", "-o", "b", "--kind", kind, *mended])
    training.train_settings(parsed, start_label=False)


@pytest.mark.parametrize("lambdas", [["0.1"], ["0.1", "much"], ["0.1", "0.2", "0.3"]])
def test_main__lambdas_that_are_no_two_numbers__ends_with_the_usage(
    lab: Lab, tmp_path: Path, lambdas: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """As for every misuse of options."""
    with pytest.raises(SystemExit) as exit_code:
        lab.train(tmp_path / "agent", "--lambdas", *lambdas)
    assert exit_code.value.code == 2
    assert capfd.readouterr().err.startswith("usage: c2f-train")


def test_main__data_that_cannot_be_used__is_told_with_its_path(
    lab: Lab, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No labels at all, none of one case, none that the model knows, nor any folder; mended as said, all are found."""
    broken = replace(lab, data=(data := Path(shutil.copytree(lab.data, tmp_path / "data"))))
    label = data / "labelsTr" / "c1.nii.gz"
    save_volume(label, np.full(SHAPE, 9, np.uint8))
    said = told(broken, tmp_path / "agent", [], capfd)
    assert f"{label}: its values go from 9 to 9" in said
    assert "Give the labels that the fine model was trained with" in said
    right = lab.data / "labelsTr" / "c1.nii.gz"
    assert read_labels(right, load_model(lab.fine), read_volume([label])).shape == SHAPE
    label.unlink()
    said = told(broken, tmp_path / "agent", [], capfd)
    assert f"{data / 'imagesTr'}: case c1 has no labels\n  Add {label}, or remove the images" in said
    shutil.copy(right, label)
    assert len(find_labelled_cases(data, 1)) == 2
    label.unlink()
    (data / "imagesTr" / "c1_0000.nii.gz").unlink()
    assert len(find_labelled_cases(data, 1)) == 1
    shutil.rmtree(data / "labelsTr")
    assert f"{data / 'labelsTr'} does not exist\n  Name a folder" in told(broken, tmp_path / "agent", [], capfd)
    assert len(find_labelled_cases(lab.data, 1)) == 2
    nowhere = replace(lab, data=tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere' / 'imagesTr'} does not exist" in told(nowhere, tmp_path / "agent", [], capfd)
    assert content(tmp_path / "agent") == {}


@pytest.mark.usefixtures("trained")  # the same command with another rois.threshold, as the message says, works
def test_main__nothing_to_learn_from__is_told(lab: Lab, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without regions there are no instances; the message says which setting decides."""
    message = told(lab, tmp_path / "agent", ["--set", "rois.threshold=0.99999"], capfd)
    assert f"{lab.data}: 0 instances to learn from and 0 to validate on" in message
    assert "or change rois.threshold" in message


def test_main__without_tensorboard__says_once_that_curves_are_not_kept(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where there would be curves, before anything takes time; the remedy is what the extra installs."""
    nothing = ["--set", "rois.threshold=0.99999"]
    said = []
    for hidden, kind in ((False, "policy"), (True, "policy"), (True, "gains")):
        with monkeypatch.context() as patch:
            if hidden:
                patch.setitem(sys.modules, "torch.utils.tensorboard", None)  # cannot be imported
            assert lab.train(tmp_path / "agent", "--kind", kind, *nothing) == 1
        said.append(capfd.readouterr().err)
    assert [text.count("curves are not kept: TensorBoard is not installed\n") for text in said] == [0, 1, 0]
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {re.split(r"[<>=]", name)[0] for name in project["optional-dependencies"]["training"]}
    (remedy,) = re.findall(r"^  Install it: pip install (.*)$", said[1], re.M)
    assert set(remedy.split()) == installed


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--set", "coarse.model=null", "--set", "mode=one-stage"],
            "to choose\n  Use mode: accelerated, with a",
        ),
        (["--fine-model", "nowhere"], "nowhere"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_main__models_that_cannot_be_used__are_told(
    lab: Lab,
    tmp_path: Path,
    options: list[object],
    expected: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As c2f-infer does, and with one stage there is nothing to choose."""
    coarse = [] if "coarse.model=null" in options else ["--coarse-model", lab.coarse]
    bare = ["--cases", lab.data, "-o", tmp_path / "agent", "--fine-model", lab.fine, *coarse, *options]
    assert train_cli.main([str(argument) for argument in bare]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert expected in error


def test_main__instances_would_replace_something_else__is_told_and_nothing_is_lost(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file of another kind, or a folder, is not taken for old instances; that is known before any are built."""
    image, folder = tmp_path / "image.nii.gz", tmp_path / "folder.h5"
    shutil.copy(lab.data / "imagesTr" / "c0_0000.nii.gz", image)
    folder.mkdir()
    before = image.read_bytes()
    monkeypatch.setattr(training, "build_instances", refuse)
    for path in (image, folder):
        assert f"cannot write {path}" in told(lab, tmp_path / "agent", ["--instances", path], capfd)
    assert image.read_bytes() == before


def test_main__output_that_is_a_file__is_told(lab: Lab, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is built first; another folder, as the message says, can be."""
    (tmp_path / "agent").write_text("mine")
    said = told(lab, tmp_path / "agent", [], capfd)
    assert f"cannot create {tmp_path / 'agent'}: Not a directory\n  Choose another folder." in said
    assert (tmp_path / "agent").read_text() == "mine"
    training.prepare_output(tmp_path / "another", overwrite=False)


def test_help__all_it_imports__is_what_c2f_infer_needs() -> None:
    """Help must not wait for packages that only training needs, which take seconds to import."""
    code = """
import sys
from coarse2fine.cli.train import main
try:
    main(["--help"])
except SystemExit as error:
    assert error.code == 0
slow = {"stable_baselines3", "sb3_contrib", "gymnasium", "tensorboard", "matplotlib"}
print("loaded:", *sorted(slow & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--lambdas LOW HIGH" in result.stdout
    assert result.stdout.splitlines()[-1] == "loaded:"
