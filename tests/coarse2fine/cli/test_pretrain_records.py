"""``c2f-pretrain`` on pictures with reports."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from picture_tables import save_set, write_table

from coarse2fine.cli.pretrain import main
from coarse2fine.pretrain.records.vocabulary import VOCABULARY, Vocabulary
from coarse2fine.pretrain.table import read_table
from coarse2fine.pretrain.weights import WEIGHTS, load_vit, read_intensities

pytestmark = pytest.mark.usefixtures("no_board")

TINY = "--network vit --size 16 --patch 4 --width 24 --depth 2 --heads 3 --steps 2 --batch 4 --device cpu"
LOSSES = {
    "mrm": {"mrm/image", "mrm/text"},
    "deep-mrm": {"deep-mrm/image", "deep-mrm/text"},
    "convirt": {"convirt"},
    "refers": {"refers/caption", "refers/contrast"},
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twelve pictures of six patients, ten with a report."""
    rows = read_table(save_set(tmp_path / "set", 6)).rows
    notes = [f"a {row.columns['kind']} square" if at > 1 else "--" for at, row in enumerate(rows)]
    lines = [(row.name, row.patient, note) for row, note in zip(rows, notes, strict=True)]
    return write_table(tmp_path / "set/notes.csv", ("file", "patient", "notes"), lines)


def run(table: Path, out: Path, *more: str) -> int:
    name = more[more.index("--objective") + 1] if "--objective" in more else "mae"
    small = [word for key in ("width=24", "depth=1", "heads=3", "length=8") for word in ("--set", f"{name}.{key}")]
    images = ["--table", str(table), "--images", str(table.parent / "images")]
    return main([*TINY.split(), *images, "-o", str(out), *(small if name in LOSSES else []), *more])


@pytest.mark.parametrize("name", LOSSES)
def test_pretrain__pictures_with_reports__writes_weights_curves_and_vocabulary(
    name: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures without words are left out and said; the weights make the transformer again."""
    more = ["--set", "mrm.detail=2"] if name == "mrm" else []
    assert run(table, tmp_path / "out", "--objective", name, "--text", "notes", *more) == 0
    assert "2 of 12 pictures have no report in the column 'notes'" in "".join(capsys.readouterr())
    curve = json.loads((tmp_path / "out/curve.json").read_text())
    assert set(curve[-1]["losses"]) == LOSSES[name]
    assert load_vit(tmp_path / "out" / WEIGHTS).shape.image == (16, 16)
    assert len(read_intensities(tmp_path / "out" / WEIGHTS).mean) == 1
    assert "square" in Vocabulary.load(tmp_path / "out" / VOCABULARY).tokenizer.get_vocab()
    assert len(json.loads((tmp_path / "out/pretraining.json").read_text())["images"]) == 10


def test_pretrain__vocabulary__is_taken_or_trained_with_further_reports(table: Path, tmp_path: Path) -> None:
    """Of a file, or of an archive beside the table's reports."""
    with tarfile.open(tmp_path / "more.tgz", "w:gz") as file:
        about = tarfile.TarInfo("1.txt")
        about.size = len(content := b"pleural effusion, effusion")
        file.addfile(about, io.BytesIO(content))
    text = ("--objective", "convirt", "--text", "notes")
    assert run(table, tmp_path / "first", *text, "--vocabulary", str(tmp_path / "more.tgz")) == 0
    first = tmp_path / "first" / VOCABULARY
    assert {"effusion", "square"} <= set(Vocabulary.load(first).tokenizer.get_vocab())
    assert run(table, tmp_path / "second", *text, "--vocabulary", str(first)) == 0
    assert first.read_bytes() == (tmp_path / "second" / VOCABULARY).read_bytes()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--objective mrm", "mrm learns from pictures with reports"),
        ("--text notes", "--text has no meaning for mae, which learns without reports"),
        ("--objective mrm+mae --text notes", "adds to what is learned from reports"),
        ("--objective mrm --text patients", "has no column 'patients'"),
        ("--objective mrm --text notes --loss-everywhere", "--loss-everywhere has no meaning for mrm"),
        ("--objective mrm --text notes --set mrm.words=1", "mrm.words='1' cannot be"),
        ("--objective convirt --text notes --set convirt.width=25", "a width of 25 for reports is not divisible by 3"),
        ("--objective refers --text notes --set refers.views=0", "refers.views='0' cannot be"),
        ("--objective mrm --text notes --vocabulary nowhere.json", "nowhere.json cannot be read"),
    ],
)
def test_pretrain__reports_that_cannot_be_learned_from__are_refused_in_one_line(
    words: str, problem: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    assert run(table, tmp_path / "out", *words.split()) == 1
    said = " ".join("".join(capsys.readouterr()).split())
    assert problem in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_pretrain__table_without_any_words__is_refused(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Naming table and column."""
    table.write_text(
        table.read_text().replace(" square", "").replace("bright", "").replace("dark", "").replace(",a ", ",-")
    )
    assert run(table, tmp_path / "out", "--objective", "mrm", "--text", "notes") == 1
    assert "none of 12 reports in the column 'notes' has words" in " ".join("".join(capsys.readouterr()).split())
