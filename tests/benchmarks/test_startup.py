"""The benchmark of starting: real processes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from conftest import benchmark_module

script = benchmark_module("startup")


@pytest.mark.long
def test_main__one_run__says_when_the_first_network_pass_begins(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After imports, which telling the version does without; the demo is not run to its end."""
    assert script.main(["--repeat", "1", "--out", str(tmp_path / "startup.json")]) == 0
    found = json.loads((tmp_path / "startup.json").read_text())
    assert found["runs_s"] == {name: [value] for name, value in found["median_s"].items()}
    assert 0 < found["median_s"]["version"] < found["median_s"]["first pass of the demo"]
    assert "first pass of the demo: " in capsys.readouterr().out


def test_seconds_of__process_that_tells_of_a_pass__counts_until_then(script: ModuleType) -> None:
    """What comes after it does not count; one that fails is an error."""
    late = "import time; print('first pass', time.time()); time.sleep(2)"
    assert script.seconds_of(late) < script.seconds_of("import time; time.sleep(1)")
    with pytest.raises(script.subprocess.CalledProcessError):
        script.seconds_of("raise SystemExit(1)")
