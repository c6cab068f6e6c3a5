"""Reports that ``c2f-pretrain`` learns from beside pictures."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.crops import Volumes
from coarse2fine.pretrain.methods import reports_of
from coarse2fine.pretrain.picture_crops import PictureData
from coarse2fine.pretrain.record_options import MrmOptions, RefersOptions
from coarse2fine.pretrain.record_source import RecordData, with_reports
from coarse2fine.pretrain.records.archive import ARCHIVES, read_reports
from coarse2fine.pretrain.records.vocabulary import Vocabulary
from coarse2fine.pretrain.settings import Settings
from coarse2fine.system.terminal import plain, shown


def records_of(
    options: argparse.Namespace, settings: Settings, data: Volumes | PictureData, console: Console
) -> RecordData | None:
    """Pictures with their reports, if that is what is learned from; says how many have none.

    Raises:
        C2FError: If there are none, or options have no meaning.
    """
    needs = reports_of(settings)
    if needs is None:
        for name in ("text", "vocabulary"):
            if getattr(options, name) is not None:
                raise ConfigError(
                    f"--{name} has no meaning for {settings.objective}, which learns without reports",
                    f"Leave out --{name}, or use --objective mrm.",
                )
        return None
    if isinstance(data, Volumes) or options.table is None or options.text is None:
        raise ConfigError(
            f"{settings.objective} learns from pictures with reports",
            "Use --network vit without plans, --table FILE, and --text NAME for its column of reports.",
        )
    rows = with_reports(data.table, options.text)
    if left := len(data.table) - len(rows):
        about = f"{left} of {len(data.table)} pictures have no report in the column {shown(options.text)}: left out"
        console.print(plain(about), soft_wrap=True)
    detail = needs.detail if isinstance(needs, MrmOptions) else 1
    size = (detail * data.shape[0], detail * data.shape[1])
    pictures = replace(data, table=data.table.take(rows), shape=size)
    vocabulary = _vocabulary(options.vocabulary, pictures.table.column(options.text))
    views = needs.views if isinstance(needs, RefersOptions) else None
    return RecordData(pictures, options.text, vocabulary, needs.length, views)


def _vocabulary(path: Path | None, texts: list[str]) -> Vocabulary:
    if path is None:
        return Vocabulary.train(texts)
    if path.name.lower().endswith(ARCHIVES):
        return Vocabulary.train([*texts, *read_reports(path)])
    return Vocabulary.load(path)
