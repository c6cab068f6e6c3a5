"""The demo as users run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from coarse2fine.cli.infer import main
from coarse2fine.page.index import read_summary


@pytest.mark.long
def test_demo__without_comparison__writes_labels_page_picture_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's finding is the nodule, and the command says where the page is."""
    assert main(["--demo", "-o", str(tmp_path / "demo")]) == 0
    names = {"labels.nii.gz", "page.html", "overlay.png", "report.json"}
    assert {path.name for path in (tmp_path / "demo").iterdir()} == names
    summary = read_summary(tmp_path / "demo" / "page.html")
    assert summary is not None
    assert summary.finding.startswith("1 component of lesion, ")
    assert "page.html in a browser" in " ".join(capsys.readouterr().out.split())
