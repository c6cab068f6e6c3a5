"""Reports in archives, read without unpacking anything: those of Indiana University and the NLM, and plain texts."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from coarse2fine.errors import ImageError
from coarse2fine.pretrain.records.vocabulary import has_words
from coarse2fine.system.terminal import plain

ARCHIVES = (".tgz", ".tar.gz", ".tar")
SECTIONS = ("FINDINGS", "IMPRESSION")
"""What of a report is about the image."""

_MOST_OF_REPORT, _MOST_IN_ALL, _MOST_FILES = 1 << 20, 2 << 30, 2_000_000
_REMEDY = "Download it again, or name an archive of .xml or .txt files, one for each report."


def read_reports(path: Path) -> list[str]:
    """The texts of all reports of an archive that have words.

    Args:
        path: A tar file, perhaps compressed, of XML as ``openi.nlm.nih.gov`` has it, or of texts in UTF-8.

    Raises:
        ImageError: If it cannot be read, holds something larger than reports are, or no report.
    """
    try:
        with tarfile.open(path) as archive:
            reports = [text for text in _texts(path, archive) if has_words(text)]
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or plain(str(error))[:200]}", _REMEDY) from None
    except (tarfile.TarError, EOFError, ValueError, ElementTree.ParseError) as error:
        raise ImageError(f"{path} is damaged: {plain(str(error))[:200]}", _REMEDY) from None
    if not reports:
        raise ImageError(f"{path} holds no reports", _REMEDY)
    return reports


def _texts(path: Path, archive: tarfile.TarFile) -> Iterator[str]:
    total = 0
    for count, member in enumerate(archive, 1):
        total += member.size
        if count > _MOST_FILES or total > _MOST_IN_ALL:
            raise ImageError(f"{path} is larger than {_MOST_IN_ALL >> 30} GiB when unpacked", _REMEDY)
        suffix = Path(member.name).suffix.lower()
        if suffix not in (".xml", ".txt") or not member.isreg():
            continue
        if member.size > _MOST_OF_REPORT:
            raise ImageError(
                f"{path}: {plain(member.name)[:200]} has {member.size:,} bytes, which is no report", _REMEDY
            )
        file = archive.extractfile(member)
        content = file.read() if file is not None else b""
        yield _sections(content) if suffix == ".xml" else content.decode("utf-8", "replace")


def _sections(content: bytes) -> str:
    """Findings and impression of an XML file."""
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # which reports have no use for, and which can grow
        raise ValueError("a report declares entities")
    found = {part.get("Label"): part.text or "" for part in ElementTree.fromstring(content).iter("AbstractText")}
    return " ".join(found[name].strip() for name in SECTIONS if found.get(name))
