"""Chains of pretrainings: read from YAML, run stage after stage, gone on with."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blobs
from raw_data import save_case, save_volume
from rich.console import Console
from safetensors.torch import load_file

from coarse2fine.cli.chain import load_chain, stage_model
from coarse2fine.cli.chain_run import run_chain
from coarse2fine.cli.finetune import build_parser as build_task_parser
from coarse2fine.cli.pretrain import build_parser, main
from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.methods import METHODS
from coarse2fine.pretrain.objective import Method, Source

pytestmark = pytest.mark.usefixtures("no_board")

SHIPPED = sorted((Path(__file__).parents[3] / "configs" / "pretrain").glob("*.yaml"))
SMALL = ("--block", "4", "--batch", "1", "--device", "cpu")
CHAIN = """
domains: {b: images-b}
stages:
  - {name: first, domain: a, steps: 2, ratio: 0.9, rate: 1.0e-3}
  - name: second
    domain: b
    steps: 1
    norm-pix: true
    weight: {mae: 0.5}
task: c2f-finetune --weights {weights} -o tuned
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two domains, and a chain beside them."""
    for name in ("a", "b"):
        save_volume(tmp_path / f"images-{name}" / f"{name}.nii.gz", blobs((12, 24, 24), seed=ord(name)))
    (tmp_path / "chain.yaml").write_text(CHAIN)
    return tmp_path


def words(folder: Path, plans: Path, *more: str) -> list[str]:
    domain = ("--domain", f"a={folder / 'images-a'}")
    return [
        "--chain",
        str(folder / "chain.yaml"),
        "--plans",
        str(plans),
        "-o",
        str(folder / "out"),
        *domain,
        *SMALL,
        *more,
    ]


def test_main__a_chain__each_stage_begins_with_the_weights_of_the_last(
    folder: Path, model_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two stages give what two commands give; run again, nothing is done, and a stage that has changed is refused."""
    plans = model_folder() / "plans.json"
    assert main(words(folder, plans)) == 0
    printed = "".join(capsys.readouterr())
    assert "stage 2 of 2: second" in printed
    last = folder / "out" / "2-second"
    assert shlex.split(printed.splitlines()[-1]) == shlex.split(
        f"c2f-finetune --weights {shlex.quote(str(last / 'weights.safetensors'))} -o tuned"
    )
    by_hand = ["--plans", str(plans), *SMALL]
    first = [*by_hand, "--images", str(folder / "images-a"), "-o", str(folder / "1"), "--steps", "2", "--ratio", "0.9"]
    second = [*by_hand, "--images", str(folder / "images-b"), "-o", str(folder / "2"), "--steps", "1", "--norm-pix"]
    second += ["--weight", "mae=0.5", "--weights", str(folder / "1" / "weights.safetensors")]
    assert main([*first, "--rate", "1e-3"]) == 0
    assert main(second) == 0
    expected, found = load_file(folder / "2" / "weights.safetensors"), load_file(last / "weights.safetensors")
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    written = (last / "weights.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert main(words(folder, plans)) == 0
    assert "".join(capsys.readouterr()).count("finished already") == 2
    assert (last / "weights.safetensors").stat().st_mtime_ns == written
    (folder / "chain.yaml").write_text(CHAIN.replace("ratio: 0.9", "ratio: 0.5"))
    assert main(words(folder, plans)) == 1
    assert "1-first holds a pretraining with other settings: ratio is 0.9 there, 0.5 here" in "".join(
        capsys.readouterr()
    )


def test_main__a_chain_that_was_cut_off__goes_on_with_the_stage_that_is_missing(
    folder: Path, model_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage that fails leaves those before it as they are, and the same command goes on."""
    plans = model_folder() / "plans.json"
    (folder / "images-b" / "b.nii.gz").rename(folder / "b.nii.gz")
    assert main(words(folder, plans)) == 1
    assert (folder / "out" / "1-first" / "weights.safetensors").exists()
    (folder / "b.nii.gz").rename(folder / "images-b" / "b.nii.gz")
    capsys.readouterr()
    assert main(words(folder, plans)) == 0
    assert "".join(capsys.readouterr()).count("finished already") == 1


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("ratio: 0.9", "ratio: much", r'chain\.yaml:4: ratio: found "much"; expected a number'),
        ("norm-pix: true", "norm-pic: true", r"chain\.yaml:8: unknown key 'norm_pic'; did you mean 'norm_pix'\?"),
        ("steps: 1", "output: x", r"chain\.yaml:7: unknown key 'output'"),
        ("name: second", "name: a/b", r'chain\.yaml:5: name: found "a/b"; expected letters'),
        ("name: second", "name: first", r"two stages are called 'first'"),
        ("stages:", "stage:", r"chain\.yaml:3: unknown key 'stage'; did you mean 'stages'\?"),
        ("task: c2f", "tusk: c2f", r"chain\.yaml:10: unknown key 'tusk'; did you mean 'task'\?"),
        ("- name: second", "- second", "chain.yaml"),
        ("steps: 1", "steps: [", "not valid YAML"),
    ],
)
def test_load_chain__mistakes__name_file_line_and_key(folder: Path, before: str, after: str, message: str) -> None:
    """Each is told with its place, and what was probably meant."""
    (folder / "chain.yaml").write_text(CHAIN.replace(before, after))
    with pytest.raises(ConfigError, match=message):
        load_chain(folder / "chain.yaml", build_parser(chained=True), build_task_parser())


def test_load_chain__several_mistakes__are_told_at_once(folder: Path) -> None:
    """Of all stages."""
    (folder / "chain.yaml").write_text(CHAIN.replace("ratio: 0.9", "ratio: x").replace("steps: 1", "steps: 1.5"))
    with pytest.raises(ConfigError, match=r"(?s)chain\.yaml:4: ratio.*chain\.yaml:7: steps: found 1\.5"):
        load_chain(folder / "chain.yaml", build_parser(chained=True), build_task_parser())


@pytest.mark.parametrize(
    ("change", "drop", "message", "remedy"),
    [
        (("domains: {b: images-b}", ""), "", "domain b, which has no folder", ("--domain", "b={folder}/images-b")),
        (("domain: b", "objective: mae"), "", "second has no images", ("--images", "{folder}/images-b")),
        (("", ""), "--plans", "first has no network", ("--plans", "{plans}")),
    ],
)
def test_main__what_a_stage_lacks__is_said_before_anything_is_learned_and_the_remedy_works(
    folder: Path,
    model_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    drop: str,
    message: str,
    remedy: tuple[str, str],
) -> None:
    """Options of the command line say what stages do not."""
    plans = model_folder() / "plans.json"
    (folder / "chain.yaml").write_text(CHAIN.replace(*change))
    given = words(folder, plans)
    if drop:
        del given[given.index(drop) : given.index(drop) + 2]
    assert main(given) == 1
    told = "".join(capsys.readouterr())
    assert message in told
    assert remedy[0] in told
    assert not (folder / "out").exists()
    assert main([*given, *(one.format(folder=folder, plans=plans) for one in remedy)]) == 0


def test_main__domains_and_chains_that_are_none__are_one_line(
    folder: Path, model_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A domain without folder, and a name that no shipped chain has."""
    plans = model_folder() / "plans.json"
    assert main(words(folder, plans, "--domain", "b")) == 1
    assert "--domain 'b' names no domain or no folder" in "".join(capsys.readouterr())
    assert main(["--chain", "mae-mea-centre", "--plans", str(plans), "-o", str(folder / "out")]) == 1
    assert "Did you mean 'mae-mae-centre'?" in "".join(capsys.readouterr())


def test_main__a_chain_with_a_task__is_fine_tuned_with_the_weights_of_the_last_stage(
    folder: Path, model_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The task's options are those of c2f-finetune, and the seed the chain's; it is measured, and not run again."""
    for split, names in (("Tr", "ab"), ("Ts", "c")):
        for name in names:
            image = blobs((12, 24, 24), seed=ord(name))
            save_case(folder / "raw", split, name, image, image > 120)
    labels = {"background": 0, "lesion": 1}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (folder / "raw" / "dataset.json").write_text(json.dumps(dataset))
    task = "task: {data: raw, steps: 1, batch: 1, layer-decay: 0.9}"
    (folder / "chain.yaml").write_text(CHAIN[: CHAIN.index("task:")] + task)
    given = words(folder, model_folder() / "plans.json", "--seed", "3")
    assert main(given) == 0
    assert "dice" in (folder / "out" / "task" / "metrics.json").read_text()
    card = json.loads((folder / "out" / "task" / "finetuning.json").read_text())
    last = (folder / "out" / "2-second" / "weights.safetensors").read_bytes()
    assert (card["weights"], card["seed"]) == (hashlib.sha256(last).hexdigest(), 3)
    capsys.readouterr()
    assert main(given) == 0
    assert "".join(capsys.readouterr()).count("finished already") == 3
    (folder / "chain.yaml").write_text(CHAIN[: CHAIN.index("task:")] + task.replace("steps", "stepps"))
    assert main(given) == 1
    assert "chain.yaml:10: unknown key 'stepps'; did you mean 'steps'?" in "".join(capsys.readouterr())


def test_run_chain__what_stages_and_task_have_themselves__stands_before_the_command_line(folder: Path) -> None:
    """Weights of the command line begin the chain; own plans take the place of its model, domains' folders are its."""
    text = CHAIN.replace("    steps: 1\n", "    steps: 1\n    plans: own.json\n")
    text = text.replace("domain: a", "images: images-a") + "  - {name: third, domain: b, objective: rotation}\n"
    stages, task = text.split("task: c2f-finetune --weights {weights} -o tuned\n")
    (folder / "chain.yaml").write_text(stages + task + "task: {data: raw, plans: own.json}\n")
    given: list[argparse.Namespace] = []

    def keep(options: argparse.Namespace, _: Console) -> None:
        given.append(argparse.Namespace(**vars(options)))

    parser, out = build_parser(chained=True), folder / "out"
    line = ["--chain", str(folder / "chain.yaml"), "--model", "model", "-o", str(out), "--weights", "before"]
    line += ["--images", "of-line"]  # of stages that name none
    run_chain(parser.parse_args([*line, "--domain", "b=elsewhere"]), parser, keep, keep, Console(quiet=True))
    before = [Path("before"), *(out / name / "weights.safetensors" for name in ("1-first", "2-second", "3-third"))]
    assert [one.weights for one in given] == before
    said = [(one.objective, one.steps, one.ratio, one.norm_pix) for one in given[:3]]
    assert said == [("mae", 2, 0.9, False), ("mae", 1, None, True), ("rotation", 10_000, None, False)]
    own, of_line = (folder / "own.json", None), (None, Path("model"))
    assert [(one.plans, one.model) for one in given] == [of_line, own, of_line, own]
    assert [one.images for one in given[:3]] == [folder / "images-a", Path("elsewhere"), Path("elsewhere")]


def test_main__a_stage_near_the_centre__hides_and_crops_there_more_often(
    folder: Path, model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a stage that says nothing of it does not; seen in what the loop is given, on a volume that is a ramp."""
    ramp = np.broadcast_to(np.arange(100, 196, dtype=np.int16), (8, 16, 96))
    for name in "ab":
        save_volume(folder / f"images-{name}" / f"{name}.nii.gz", np.ascontiguousarray(ramp))
    (folder / "chain.yaml").write_text(
        CHAIN.replace("ratio: 0.9", "ratio: 0.5").replace("steps: 1", "centre: 0.4\n    ratio: 0.3")
    )
    spreads, shares = [], []

    def look(network: object, method: Method, source: Source, *rest: object) -> None:
        batch = source.draw(300, np.random.default_rng(0))
        hidden = method.objectives["mae"].views(batch, np.random.default_rng(0))["hidden"].float().mean((0, 1))
        shares.append(float(hidden[:, 4:12, 4:12].mean() / hidden[:, :4, :4].mean()))
        spreads.append(float(batch["images"].mean((1, 2, 3, 4)).std()))

    monkeypatch.setattr("coarse2fine.pretrain.run.pretrain", look)
    assert main(words(folder, model_folder() / "plans.json")) == 0
    assert shares[0] == pytest.approx(1, abs=0.15)
    assert shares[1] > 1.5
    assert spreads[1] < 0.85 * spreads[0]


@pytest.mark.parametrize("file", SHIPPED, ids=[file.stem for file in SHIPPED])
def test_load_chain__shipped_ones__are_valid_and_learn_what_there_is(file: Path) -> None:
    """By name; every objective is known, and the command in the comment names the chain and its domains."""
    parser = build_parser(chained=True)
    chain = load_chain(Path(file.stem), parser, build_task_parser())
    assert chain.about
    for stage in chain.stages:
        assert set(str(stage.options["objective"]).split("+")) <= set(METHODS)
    comment = next(line for line in file.read_text().splitlines() if line.startswith("# c2f-pretrain"))
    options = parser.parse_args(shlex.split(comment)[2:])
    assert str(options.chain) == file.stem
    assert {text.partition("=")[0] for text in options.domain} == {one.domain for one in chain.stages} - {None}


def test_stage_model__options_of_the_command__are_the_keys() -> None:
    """Whatever the command learns, a stage may say, but for what is the whole chain's."""
    parser = build_parser(chained=True)
    keys = set(stage_model(parser).model_fields)
    assert {"name", "domain", "images", "objective", "norm_pix", "ratio", "set", "weight"} <= keys
    assert not keys & {"help", "output", "weights", "chain", "device"}
    known = {action.dest for action in parser._actions}
    assert keys - {"name"} <= known


def test_card__of_a_stage__holds_the_fingerprint_of_the_weights_it_began_with(
    folder: Path, model_folder: Callable[..., Path]
) -> None:
    """So that a later stage does not go on with an earlier one that has changed."""
    assert main(words(folder, model_folder() / "plans.json")) == 0
    card = json.loads((folder / "out" / "2-second" / "pretraining.json").read_text())
    assert len(card["weights"]) == 64
