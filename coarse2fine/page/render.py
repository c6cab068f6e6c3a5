"""From templates to a document that loads nothing: everything that is put in is escaped, and browsers are told so."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

MADE_BY = '<meta name="generator" content="coarse2fine">'
"""By which pages of ours are known."""
_POLICY = "default-src 'none'; img-src data:; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"


@cache
def _environment() -> Environment:
    loader = PackageLoader("coarse2fine.page")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _style() -> str:
    environment = _environment()
    source, _, _ = environment.loader.get_source(environment, "style.css")  # type: ignore[union-attr]
    return source


def render(template: str, *, policy: str = "", **values: Any) -> str:
    """A document.

    Args:
        template: File name of a template that extends ``base.html``.
        policy: What else browsers may run and load; nothing unless it is said.
        values: What it shows; text is escaped.
    """
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    allowed = _POLICY.format(style=digest) + (f"; {policy}" if policy else "")
    # The style is ours, and stands between tags as it is: its hash is what browsers are told.
    return (
        _environment()
        .get_template(template)
        .render(style=Markup(style), made_by=Markup(MADE_BY), policy=allowed, **values)
    )
