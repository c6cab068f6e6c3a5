"""Archives of reports: read in the layout of the NLM, and never unpacked."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from coarse2fine.errors import ImageError
from coarse2fine.pretrain.records import archive
from coarse2fine.pretrain.records.archive import read_reports

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">Positive TB test</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation></eCitation>"""


def write(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    return path


def report(findings: str, impression: str) -> bytes:
    return XML.format(findings=findings, impression=impression).encode()


def test_read_reports__xml_and_texts__are_findings_and_impression_or_all(tmp_path: Path) -> None:
    """Reports without words are left out, as are other files."""
    path = write(
        tmp_path / "reports.tgz",
        {
            "ecgen-radiology/1.xml": report("No edema.", " Normal &lt;chest&gt;. "),
            "ecgen-radiology/2.xml": report("", "Clear."),
            "ecgen-radiology/3.xml": report("", ""),
            "texts/4.txt": "Größe normal".encode(),
            "README.md": b"no report",
            "../../5.txt": b"never unpacked",
        },
    )
    assert read_reports(path) == ["No edema. Normal <chest>.", "Clear.", "Größe normal", "never unpacked"]
    assert [place for place in (tmp_path, *tmp_path.parents[:2], Path.cwd()) if (place / "5.txt").exists()] == []
    assert [file.name for file in tmp_path.iterdir()] == ["reports.tgz"]


def test_read_reports__links_to_files_outside__are_not_followed(tmp_path: Path) -> None:
    """A link is no report."""
    (tmp_path / "secret.txt").write_text("secret words")
    with tarfile.open(tmp_path / "links.tar", "w") as file:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            about = tarfile.TarInfo(f"{kind.decode()}.txt")
            about.type, about.linkname = kind, str(tmp_path / "secret.txt")
            file.addfile(about)
    with pytest.raises(ImageError, match="holds no reports"):
        read_reports(tmp_path / "links.tar")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "damaged: a report declares entities"),
        (b"<a><b></a>", "is damaged: mismatched tag"),
        (b"x" * (2 << 20), r"1\.xml has 2,097,152 bytes, which is no report"),
    ],
)
def test_read_reports__xml_that_is_no_report__is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    """In one line; without it the rest is read."""
    path = write(tmp_path / "reports.tgz", {"1.xml": content, "2.txt": b"clear lungs"})
    with pytest.raises(ImageError, match=words) as raised:
        read_reports(path)
    assert ".txt files" in raised.value.remedy
    assert read_reports(write(path, {"2.txt": b"clear lungs"})) == ["clear lungs"]


def test_read_reports__no_archive_or_half_of_one__is_refused(tmp_path: Path) -> None:
    """Missing, of another kind, or cut off."""
    path = write(tmp_path / "reports.tgz", {f"{number}.txt": bytes(range(256)) * 20 for number in range(20)})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"reports\.tgz (is damaged|cannot be read)"):
        read_reports(path)
    (tmp_path / "other.tgz").write_bytes(b"PK\x03\x04" * 99)
    with pytest.raises(ImageError, match=r"other\.tgz (is damaged|cannot be read)"):
        read_reports(tmp_path / "other.tgz")
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        read_reports(tmp_path / "missing.tgz")


def test_read_reports__more_than_there_are_reports_of__is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted before anything of it is read."""
    monkeypatch.setattr(archive, "_MOST_IN_ALL", 40)
    path = write(tmp_path / "reports.tgz", {"1.txt": b"clear lungs " * 3, "2.dat": b"0" * 30})
    with pytest.raises(ImageError, match="is larger than 0 GiB when unpacked"):
        read_reports(path)
