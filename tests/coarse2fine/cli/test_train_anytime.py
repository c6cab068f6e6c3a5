"""c2f-train --anytime: an agent for deadlines, beside rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import blobs
from raw_data import save_volume

from assignnet.learn.agent import load_agent
from assignnet.value.anytime import ORDERS
from coarse2fine.cli import infer as cli
from coarse2fine.cli import train as train_cli


@pytest.mark.long
def test_main__anytime__gives_an_agent_whose_order_c2f_infer_follows(
    model_folder: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its area under quality against time stands beside that of rules, and on its card."""
    names = ["--coarse-model", model_folder(seed=5, spacing=(4.0, 2.0, 2.0)), "--fine-model", model_folder(seed=10)]
    models = [*names, "--device", "cpu", "--set", "rois.threshold=0.58", "--set", "fine.mirroring=false"]
    data, agent, report = tmp_path / "raw", tmp_path / "agent", tmp_path / "report.json"
    for index in range(2):
        save_volume(data / "imagesTr" / f"c{index}_0000.nii.gz", blobs((12, 32, 32), seed=index))
    assert run(cli.main, "-i", data / "imagesTr", "-o", data / "labelsTr", "--mode", "one-stage", *models) == 0
    small = ["--variants", 1, "--regions", 1, "--steps", 2]
    assert run(train_cli.main, "--cases", data, "-o", agent, "--anytime", *small, *models) == 0
    lines = [line.split("│") for line in capfd.readouterr().err.splitlines() if line.startswith("│")]
    table = {name.strip(): area.strip() for _, name, area, _ in lines}
    assert list(table) == ["this agent", *ORDERS]
    card = load_agent(agent).card
    assert card.anytime
    assert table["this agent"] == f"{card.metrics['anytime_area']:.4f}"
    source, out = data / "imagesTr" / "c0_0000.nii.gz", tmp_path / "out.nii.gz"
    options = ["--set", f"assign.agent={agent}", "--deadline", "1h", "--report", report]
    assert run(cli.main, "-i", source, "-o", out, *options, *models) == 0
    written = json.loads(report.read_text())
    assert written["deadline"]["order"] == "agent"
    assert written["boxes"]["dropped"] == 0


def run(command: Callable[[list[str]], int], *arguments: object) -> int:
    return command([str(argument) for argument in arguments])
