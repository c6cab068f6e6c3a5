"""The table of what can be learned: sums, weights and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.methods import METHODS, Entry, Task, method_of
from coarse2fine.pretrain.objective import Batch, Method, Views
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings


@dataclass(frozen=True, slots=True)
class Constant:
    """A loss that does not depend on anything."""

    value: float

    @property
    def heads(self) -> nn.Module:
        return nn.Identity()

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        return batch

    def loss(self, network: nn.Module, views: Views) -> torch.Tensor:
        return torch.tensor(self.value)


@dataclass(frozen=True, slots=True)
class Options:
    """Of the entry ``two``."""

    value: float = 3.0
    form: Literal["plain", "log"] = "plain"


def two(task: Task, options: Options) -> Method:
    """A method of two parts, of which the second counts ten times."""
    second = np.log(options.value) if options.form == "log" else options.value
    return Method({"first": Constant(1.0), "second": Constant(second)}, {"second": 10.0})


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "one", Entry(lambda task, options: Method({"one": Constant(2.0)}), "one"))
    monkeypatch.setitem(METHODS, "two", Entry(two, "two", Options))


def losses(objective: str, weights: dict[str, float] | None = None, own: dict[str, str] | None = None) -> object:
    settings = Settings(Schedule(1, 1), objective, weights or {}, own or {}, block=4)
    method = method_of(Task(nn.Identity(), (8, 8), settings))
    images = torch.zeros(1, 1, 8, 8)
    return {
        name: pytest.approx(float(loss))
        for name, loss in method.losses(nn.Identity(), {"images": images}, np.random.default_rng(0)).items()
    }


def test_method_of__several_names__are_summed_with_their_weights() -> None:
    """A factor of a name is one of all its parts, which keep their own."""
    assert losses("one") == {"one": 2.0}
    assert losses("one+two") == {"one": 2.0, "first": 1.0, "second": 30.0}
    assert losses("two+one", {"two": 0.5}) == {"first": 0.5, "second": 15.0, "one": 2.0}
    assert losses("mae+one", {"one": 3.0}) == {"mae": 0.0, "one": 6.0}


def test_method_of__options_of_one_objective__reach_it_as_what_they_are() -> None:
    """Numbers and names, read from text; others keep their defaults."""
    assert losses("one+two", own={"two.value": "5"}) == {"one": 2.0, "first": 1.0, "second": 50.0}
    assert losses("two", own={"two.value": "7", "two.form": "log"}) == {"first": 1.0, "second": 10 * np.log(7)}


@pytest.mark.parametrize(
    ("objective", "weights", "own", "says", "remedy"),
    [
        ("nothing", {}, {}, "'nothing', which is unknown", "There are mae, "),
        ("one+", {}, {}, "'', which is unknown", "There are mae, "),
        ("one+one", {}, {}, "'one\\+one' names something twice", "--weight"),
        ("one", {"two": 1.0}, {}, "given for 'two'", "There is one "),
        ("one", {"one": 0.0}, {}, "weight of one is 0", "above 0"),
        ("one", {"one": float("nan")}, {}, "weight of one is nan", "above 0"),
        ("one", {}, {"one.value": "1"}, "--set 'one.value' is no option of one", "Leave it out"),
        ("one+two", {}, {"two.size": "1"}, "--set 'two.size' is no option of one\\+two", "two.value, two.form"),
        ("two", {}, {"two.value": "x"}, "--set two.value='x' cannot be: ", "Leave two.value out"),
        ("two", {}, {"two.form": "lin"}, "--set two.form='lin' cannot be: ", "Leave two.form out"),
    ],
)
def test_method_of__what_cannot_be__is_refused_by_name(
    objective: str, weights: dict[str, float], own: dict[str, str], says: str, remedy: str
) -> None:
    """One line with the name, and what would do."""
    with pytest.raises(ConfigError, match=says) as raised:
        losses(objective, weights, own)
    assert remedy in raised.value.remedy


def test_method_of__part_that_two_objectives_have__is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loss disappears behind another of its name."""
    monkeypatch.setitem(METHODS, "three", Entry(two, "two again", Options))
    with pytest.raises(ConfigError, match="names first twice"):
        losses("two+three")
