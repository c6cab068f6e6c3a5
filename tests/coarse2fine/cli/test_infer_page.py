"""``c2f-infer --page``: pages of files and folders."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from infer_runs import Models, run, save, use, voxels, write

from coarse2fine.cli.explain import main as explain_main
from coarse2fine.explain.overlay import draw_map
from coarse2fine.explain.volumes import Explanation
from coarse2fine.io import read_volume
from coarse2fine.page.index import read_summary


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of two cases, and a third that is no image."""
    folder = tmp_path / "scans"
    for name in ("a", "b"):
        save(folder / f"{name}_0000.nii.gz")
    write(folder / "c_0000.nii.gz", b"nothing")
    return folder


def test_page__one_file__shows_what_its_labels_hold(models: Models, tmp_path: Path) -> None:
    """The millilitres of the finding are those of the voxels in the label file."""
    image, labels, page = save(tmp_path / "a.nii.gz"), tmp_path / "labels.nii.gz", tmp_path / "pages" / "a.html"
    assert run("-i", image, "-o", labels, "--page", page, *use(models)) == 0
    found = read_summary(page)
    assert found is not None
    volume = np.count_nonzero(voxels(labels)) * 2.0 * 0.8 * 0.9 / 1000
    assert f", {volume:.3g} ml" in found.finding.replace("\xa0", " ")
    assert {path.name for path in page.parent.iterdir()} == {"a.html"}


def test_page__folder_with_a_broken_case__has_an_index_of_all(
    models: Models, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pages of what was done lie beside the index, which says what failed and why."""
    index = tmp_path / "all.html"
    assert run("-i", scans, "-o", tmp_path / "out", "--page", index, *use(models)) == 1
    html = index.read_text(encoding="utf-8")
    assert "2 of 3 cases done, 1 failed" in html
    assert "<strong>c</strong>: " in html
    assert sorted(path.name for path in (tmp_path / "all_files").iterdir()) == ["a.html", "b.html"]

    save(scans / "c_0000.nii.gz")
    assert run("-i", scans, "-o", tmp_path / "out", "--page", index, "--skip-existing", *use(models)) == 0
    assert "3 of 3 cases done" in index.read_text(encoding="utf-8")
    assert run("-i", scans, "-o", tmp_path / "out2", "--page", index, *use(models)) == 1
    assert "exists already" in capsys.readouterr().err
    assert not (tmp_path / "out2" / "a.nii.gz").exists()


def test_page__parts_of_a_folder__share_an_index(models: Models, tmp_path: Path) -> None:
    """The second part adds its case to what the first has done; a stranger's file is not replaced."""
    scans, index = tmp_path / "scans", tmp_path / "all.html"
    for name in ("a", "b"):
        save(scans / f"{name}_0000.nii.gz")
    for part, state in (("1/2", "1 of 2 cases done"), ("2/2", "2 of 2 cases done")):
        assert run("-i", scans, "-o", tmp_path / "out", "--page", index, "--part", part, *use(models)) == 0
        assert state in index.read_text(encoding="utf-8")
    index.write_text("mine")
    assert run("-i", scans, "-o", tmp_path / "out3", "--page", index, "--part", "1/2", *use(models)) == 1
    assert index.read_text() == "mine"


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("page.pdf", "Use one of .html"),
        ("a.nii.gz", "is an input or another result of this run Choose another name with --page."),
        ("report.html", "is an input or another result of this run Choose another name with --page."),
        ("folder.html", "it is a folder"),
        ("a.nii.gz/page.html", "cannot write"),
    ],
)
def test_page__cannot_be_written__is_refused_before_anything_runs(
    page: str, words: str, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another ending, the image, the report, a folder, and a place below a file."""
    image, labels = save(tmp_path / "a.nii.gz"), tmp_path / "labels.nii.gz"
    (tmp_path / "folder.html").mkdir()
    report = tmp_path / "report.html"
    assert run("-i", image, "-o", labels, "--report", report, "--page", tmp_path / page, *use(models)) == 1
    assert " ".join(words.split()) in " ".join(capsys.readouterr().err.split())
    assert not labels.exists()


def test_page__one_stage__says_that_everything_was_looked_at(models: Models, tmp_path: Path) -> None:
    """No heatmap, no boxes."""
    image, page = save(tmp_path / "a.nii.gz"), tmp_path / "a.html"
    arguments = ["-i", image, "-o", tmp_path / "b.nii.gz", "--page", page, "--mode", "one-stage"]
    assert run(*arguments, *use(models, coarse=None)) == 0
    html = page.read_text(encoding="utf-8")
    assert "the fine network looked at the whole volume" in html
    assert "Heatmap" not in html


def test_viewer__with_and_without_a_page__holds_the_volume_or_is_refused(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The remedy that the message names works."""
    image, page = save(tmp_path / "a.nii.gz"), tmp_path / "a.html"
    arguments = ["-i", image, "-o", tmp_path / "b.nii.gz", "--viewer", *use(models)]
    assert run(*arguments) == 1
    assert "--viewer without --page" in capsys.readouterr().err
    assert run(*arguments, "--page", page) == 0
    assert 'id="viewer-data"' in page.read_text(encoding="utf-8")


def test_page__store__is_refused(models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what to do instead."""
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zarray").write_text("{}")
    out = tmp_path / "b.zarr"
    assert run("-i", tmp_path / "a.zarr", "-o", out, "--page", tmp_path / "a.html", *use(models)) == 1
    assert "--page is for volumes in files" in capsys.readouterr().err


@pytest.mark.long
def test_explain__label_that_was_found__has_a_map_on_the_page(models: Models, tmp_path: Path) -> None:
    """It is the map that ``c2f-explain`` makes of the voxels that the run found; without the option there is none."""
    image, labels = save(tmp_path / "a.nii.gz"), tmp_path / "b.nii.gz"
    arguments = ["-i", image, "-o", labels, "--overwrite", *use(models)]
    pages = {}
    for name, options in {"with": ["--explain", "lesion"], "without": []}.items():
        pages[name] = tmp_path / f"{name}.html"
        assert run(*arguments, "--page", pages[name], *options) == 0
    html = pages["with"].read_text(encoding="utf-8")
    assert "lesion, slice " in html
    assert "What spoke for it" not in pages["without"].read_text(encoding="utf-8")
    picture = tmp_path / "map.png"
    about = ["--model", models["fine"], "--label", "lesion", "--mask", labels, "--png", picture]
    assert explain_main([str(word) for word in ("-i", image, "-o", tmp_path / "map.nii.gz", *about)]) == 0
    volume, values = read_volume([image]), read_volume([tmp_path / "map.nii.gz"]).channels[0]
    found = Explanation(values, voxels(labels) == 1, "")
    assert base64.b64encode(draw_map(volume, found, title="lesion", ct=False)[0]).decode() in html


@pytest.mark.parametrize(
    ("options", "problem", "remedy"),
    [
        (["--explain", "lesion"], "--explain without --page", ["--explain", "lesion", "--page", "PAGE"]),
        (
            ["--explain", "leison", "--page", "PAGE"],
            "did you mean 'lesion'?",
            ["--explain", "lesion", "--page", "PAGE"],
        ),
    ],
)
def test_explain__cannot_be__is_told_before_anything_runs(
    models: Models,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    problem: str,
    remedy: list[str],
) -> None:
    """The remedy works."""
    image, page = save(tmp_path / "a.nii.gz"), str(tmp_path / "a.html")
    arguments = ["-i", image, "-o", tmp_path / "b.nii.gz", *use(models)]
    assert run(*arguments, *(word.replace("PAGE", page) for word in options)) == 1
    assert problem in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "b.nii.gz").exists()
    assert run(*arguments, *(word.replace("PAGE", page) for word in remedy)) == 0
