"""What messages about settings tell to do is done, and then the settings are read."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from coarse2fine.config.reader import load_config, shipped_config
from coarse2fine.config.schema import ORIGINAL_NAMES, Config
from coarse2fine.errors import ConfigError

# Values that are what a message says that it expects.
EXAMPLES = {
    "a whole number above 0": "1",
    "a whole number, 0 or more": "0",
    "a number": "-1.5",
    "a number, 0 or more": "0.5",
    "a number above 0, at most 1": "1",
    "a number from 0 to below 1": "0.5",
    "a time above 0, as 30 (seconds), 30s, 5m or 1h": "30s",
    "three whole numbers above 0, as [z, y, x]": "[1, 1, 1]",
    "three whole numbers, 0 or more, as [z, y, x]": "[0, 0, 0]",
    "three numbers above 0, as [z, y, x]": "[1, 0.5, 2]",
    "a list such as [0, 1, 2] or [all]": "[0, 1, 2]",
    "the path of a folder": "some/folder",
    "the name of a rule or agent, or the path of an agent's folder": "greedy",
    "the name of a file, without folders": "checkpoint_best.pth",
    "auto, cpu, cuda, cuda:N or mps": "cpu",
    "true or false": "false",
    "a list of label names, such as [liver, spleen] (a name that reads as a number in quotes)": "[liver, spleen]",
}


def message_of(path: Path | str | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Every key that a file may set, and whether it is a section that may be left out."""
    for name, field in model.model_fields.items():
        key = prefix + (field.serialization_alias or name)
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        sections = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if not sections or type(None) in kinds:
            yield key, bool(sections)
        for section in sections:
            if not any(part.is_required() for part in section.model_fields.values()):  # those are written by programs
                yield from keys_of(section, f"{key}.")


@pytest.mark.parametrize("key", [key for key, is_section in keys_of(Config) if not is_section])
def test_remedy__what_a_key_expects__is_taken(key: str) -> None:
    """Each of the values that the message names; those that are described are taken from ``EXAMPLES``."""
    said = message_of(None, f"{key}=[x, [y]]").splitlines()[0]
    expected = said.partition("; expected ")[2]
    with_null = expected.endswith(", or null")
    expected = expected.removesuffix(", or null")
    values = [EXAMPLES[expected]] if expected in EXAMPLES else re.split(", or | or ", expected)
    values = [EXAMPLES.get(value, value) for value in values]
    for value in [*values, *(["null"] if with_null else [])]:
        needed = {"canvas.slot": "canvas.size", "fine.crop_threshold": "canvas.slot"}.get(key)
        load_config(None, [f"{key}={value}", *([f"{needed}={value}"] if needed and value != "null" else [])])


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("rois:\n  treshold: 0.5\n", "rois:\n  {}: 0.5\n"),
        ("roi:\n  threshold: 0.5\n", "{}:\n  threshold: 0.5\n"),
        ("assign:\n  agent: greddy\n", "assign:\n  agent: {}\n"),
        ("mod: one-stage\n", "{}: one-stage\n"),
    ],
)
def test_remedy__did_you_mean__is_taken(tmp_path: Path, wrong: str, right: str) -> None:
    """What the message asks for is there."""
    path = tmp_path / "a.yaml"
    path.write_text(wrong)
    guess = re.search("did you mean '(.*?)'", message_of(path))
    assert guess is not None
    path.write_text(right.format(guess[1]))
    load_config(path)


@pytest.mark.parametrize("name", ORIGINAL_NAMES)
def test_remedy__name_of_the_original_system__leads_to_ours(tmp_path: Path, name: str) -> None:
    """The key that the message gives takes the value, which is here what the shipped settings have."""
    path = tmp_path / "a.yaml"
    path.write_text(f"{name}: 1\n")
    ours = re.search("it is called '(.*?)' here", message_of(path))
    assert ours is not None
    value = load_config("covid").to_dict()
    for part in ours[1].split("."):
        value = value[part]
    load_config("covid", [f"{ours[1]}={str(value).lower() if isinstance(value, bool) else value}"])


@pytest.mark.parametrize(
    ("wrong", "says", "right"),
    [
        (
            "rois:\n  empty: !!str background\n  window: !x [1, 1, 1]\n",
            "only plain values",
            "rois:\n  empty: background\n",
        ),
        ("mode: one-stage\nmode: two-stage\n", "duplicate key", "mode: one-stage\n"),
        ("assign: {lambda: 0.1, weight: 0.1}\n", "are the same key; give one", "assign: {lambda: 0.1}\n"),
        ("- rois\n", "expected sections of keys", "rois:\n"),
        ("rois: 3\n", "expected a section with the keys threshold", "rois: {threshold: 0.3}\n"),
        ("mode: one-stage\n\tdevice: cpu\n", "not valid YAML", "mode: one-stage\ndevice: cpu\n"),
        ("rois: {threshold: {low: 1}}\n", "expected a number from 0", "rois: {threshold: 0.1}\n"),
        ("assign: {lambda: 0, drop: true}\n", "needs a lambda above 0", "assign: {lambda: 0.1, drop: true}\n"),
        (
            "canvas: {size: [8, 8, 8], slot: [9, 8, 8]}\n",
            "does not fit into",
            "canvas: {size: [8, 8, 8], slot: [8, 8, 8]}\n",
        ),
        (
            "canvas: {size: [8, 8, 8], capacity: 9, packing: same_size}\n",
            "is more than the 8 slots",
            "canvas: {size: [8, 8, 8], capacity: 8, packing: same_size}\n",
        ),
        (
            "canvas: {slot: [8, 8, 8], context: [4, 0, 0]}\n",
            "leaves no room for a box",
            "canvas: {slot: [8, 8, 8], context: [3, 0, 0]}\n",
        ),
        (
            "canvas: {slot: [8, 8, 8]}\nfine: {crop_threshold: [9, 8, 8]}\n",
            "is larger than the slot",
            "canvas: {slot: [8, 8, 8]}\nfine: {crop_threshold: [8, 8, 8]}\n",
        ),
    ],
)
def test_remedy__what_the_message_says_of_a_file__is_taken(tmp_path: Path, wrong: str, says: str, right: str) -> None:
    """The file is changed where the message says, as it says, and nowhere else."""
    path = tmp_path / "a.yaml"
    path.write_text(wrong)
    assert says in message_of(path)
    path.write_text(right)
    load_config(path)


def test_remedy__list_of_shipped_configurations__each_opens(tmp_path: Path) -> None:
    """Their names alone are enough, as the message says, and the page on which all keys stand is there."""
    said = message_of("covd")
    names = said.partition("Shipped configurations: ")[2].partition(";")[0].split(", ")
    assert "covid" in names
    for name in names:
        assert load_config(name) == load_config(shipped_config(name))
    page = Path(message_of(None, "mode=fast").splitlines()[-1].partition(" lists every key")[0].strip())
    assert "`rois.threshold`" in page.read_text()


@pytest.mark.usefixtures("modes_are_obeyed")
def test_remedy__file_that_cannot_be_read__is_read(tmp_path: Path) -> None:
    """Too long, in another encoding, or without permission."""
    path = tmp_path / "my settings.yaml"
    path.write_text("# a comment\n" * 10_000 + "mode: one-stage\n")
    assert "take comments out" in message_of(path)
    path.write_text("mode: one-stage\n")
    assert load_config(path).mode == "one-stage"
    path.write_text("mode: one-stage\n", encoding="utf-16")
    assert "Save it as text in UTF-8" in message_of(path)
    path.write_text("mode: one-stage\n", encoding="utf-8")
    assert load_config(path).mode == "one-stage"
    path.chmod(0)
    said = message_of(path)
    assert "may not be read" in said
    subprocess.run(shlex.split(said.partition("the right to: ")[2]), check=True)
    assert load_config(path).mode == "one-stage"
