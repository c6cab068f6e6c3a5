"""An agent's files: nothing is lost in them, and strangers' files cannot do harm."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_examples import CARD, example, gains, policy, run
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from assignnet.learn.agent import Agent, load_agent, save_agent

# --- files


@pytest.mark.parametrize("make", [policy, gains])
def test_save_agent__loaded_again__has_the_same_card_and_chooses_the_same(
    make: Callable[[], Agent], tmp_path: Path
) -> None:
    """Nothing is lost on the way."""
    agent = make().with_metrics({"dice": 0.75, "cases": 3})
    save_agent(tmp_path / "deep" / "agent", agent)
    loaded = load_agent(tmp_path / "deep" / "agent")
    assert loaded.card == agent.card
    assert loaded.card.metrics == {"dice": 0.75, "cases": 3}
    for seed in range(3):
        assert run(loaded, example(seed)) == run(agent, example(seed))
    assert {path.name for path in (tmp_path / "deep" / "agent").iterdir()} == {"agent.json", "weights.safetensors"}


def test_save_agent__twice__writes_the_same_bytes(tmp_path: Path) -> None:
    """Files can be compared; keys are sorted."""
    for name in ("a", "b"):
        save_agent(tmp_path / name, policy())
    for file in ("agent.json", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    keys = list(json.loads((tmp_path / "a" / "agent.json").read_text()))
    assert all(one < other for one, other in pairwise(keys))


def test_save_agent__cannot_replace_a_file__leaves_the_old_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file appears as a whole or not at all, and nothing else remains."""
    save_agent(tmp_path, policy(0))

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_agent(tmp_path, policy(1))
    assert len(list(tmp_path.iterdir())) == 2
    assert run(load_agent(tmp_path), example()) == run(policy(0), example())


def test_save_agent__what_cannot_be_loaded__is_not_written(tmp_path: Path) -> None:
    """A training that went wrong is noticed when its agent is written."""
    agent = policy()
    with torch.no_grad():
        agent.network.pointer.stop[0] = torch.nan
    with pytest.raises(ValueError, match=r"pointer\.stop .*not finite"):
        save_agent(tmp_path, agent)
    with pytest.raises(ValueError, match=r"JSON|metrics"):
        save_agent(tmp_path, policy().with_metrics({"dice": float("nan")}))
    for training, message in (({"seed": tmp_path}, "JSON cannot"), ({"cases": "a" * (1 << 20)}, "shorten 'training'")):
        with pytest.raises(ValueError, match=message):
            save_agent(tmp_path, Agent(replace(CARD, training=training), policy().network))
    assert not list(tmp_path.iterdir())


def test_load_agent__files_of_two_agents__are_told_apart(tmp_path: Path) -> None:
    """A card beside weights of the same shapes but of another agent would describe what it does not know."""
    save_agent(tmp_path / "a", policy(0))
    save_agent(tmp_path / "b", policy(1))
    (tmp_path / "a" / "agent.json").replace(tmp_path / "b" / "agent.json")
    with pytest.raises(ValueError, match=r"weights\.safetensors is not the file that agent.json was written with"):
        load_agent(tmp_path / "b")


# --- strangers' files


def change(folder: Path, key: str, value: object) -> None:
    """Set a key of the card, dots between levels; ``...`` removes it."""
    path = folder / "agent.json"
    document = json.loads(path.read_text())
    *above, name = key.split(".")
    table = document
    for level in above:
        table = table[level]
    table[name] = value
    if value is ...:
        del table[name]
    path.write_text(json.dumps(document))


def replace_weights(folder: Path, data: bytes) -> None:
    """Put other bytes in place of the weights, and their checksum on the card."""
    (folder / "weights.safetensors").write_bytes(data)
    change(folder, "checksum", hashlib.sha256(data).hexdigest())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of an agent."""
    save_agent(tmp_path, policy())
    return tmp_path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "coarse2fine agent 2"),
        ("kind", "pickle"),
        ("kind", ["policy"]),
        ("checksum", "AB" * 32),
        ("checksum", ...),
        ("network", [1]),
        ("network", ...),
        ("network.features", 10**9),
        ("network.features", -1),
        ("network.features", 3.0),
        ("network.features", True),
        ("network.volume", 10**6),
        ("network.width", 2**40),
        ("network.width", "16"),
        ("network.width", 0),
        ("network.layers", 10**6),
        ("network.layers", ...),
        ("network.heads", 3),
        ("network.start_label", 1),
        ("network.dropout", 0.5),
        ("features", None),
        ("features.source", "middle"),
        ("features.source", ...),
        ("features.fingerprint", "abc"),
        ("features.foreground", "liver"),
        ("features.foreground", [1]),
        ("problem", {}),
        ("problem.packing", "tight"),
        ("problem.slot", [8, 8]),
        ("problem.slot", [8, 8, 0]),
        ("problem.native", [8.5, 8, 8]),
        ("metric", "hd95"),
        ("weights", [0.5, 0.01]),
        ("weights", [-0.1, 0.01]),
        ("weights", [0.1, 10**400]),
        ("weights", 0.1),
        ("training", []),
        ("metrics", {"dice": "0.9"}),
        ("metrics", {"dice": False}),
        ("hook", "os.system"),
    ],
)
def test_load_agent__card_with_a_wrong_value__is_refused(folder: Path, key: str, value: object) -> None:
    """The message names the file, the key and what to do."""
    change(folder, key, value)
    with pytest.raises(ValueError, match=r"agent\.json") as caught:
        load_agent(folder)
    assert key.split(".")[-1] in str(caught.value)
    assert "train the agent anew" in str(caught.value) or "use the version" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2]",
        b"null",
        b"{'kind': 1}",
        b'{"format": "coarse2fine agent 1", "format": "coarse2fine agent 1"}',
        b'{"metrics": NaN}',
        b'{"metrics": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b" " * (2 << 20),
    ],
    ids=range(11),
)
def test_load_agent__card_that_is_no_json_object__is_refused(folder: Path, text: bytes) -> None:
    """Damage, tricks of the JSON reader, and files of any size."""
    (folder / "agent.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"agent\.json") as caught:
        load_agent(folder)
    assert "train the agent anew" in str(caught.value) or "use the version" in str(caught.value)


def test_load_agent__repeated_key__is_refused(folder: Path) -> None:
    """Readers differ in which of two values they take, so a card must not look different to another program."""
    text = (folder / "agent.json").read_text()
    (folder / "agent.json").write_text(text.replace('"metric"', '"kind": "gains", "metric"'))
    with pytest.raises(ValueError, match=r"agent\.json .* repeated"):
        load_agent(folder)


@pytest.mark.parametrize("name", ["agent.json", "weights.safetensors"])
def test_load_agent__missing_file_or_folder_in_its_place__is_refused(folder: Path, name: str) -> None:
    """The message names what is missing."""
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is no file"):
        load_agent(folder)
    (folder / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is no file"):
        load_agent(folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("honest", [True, False])
def test_load_agent__pickle_renamed__is_not_executed(folder: Path, honest: bool) -> None:
    """A pickle is no safetensors file, whether or not the card's checksum is its own."""
    data = pickle.dumps(Bomb())
    if honest:
        (folder / "weights.safetensors").write_bytes(data)
    else:
        replace_weights(folder, data)
    with pytest.raises(ValueError, match=r"weights\.safetensors is not"):
        load_agent(folder)


def wrong(
    name: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> Callable[[dict[str, torch.Tensor]], None]:
    def apply(tensors: dict[str, torch.Tensor]) -> None:
        changed = change(tensors.pop(name, torch.zeros(2)))
        if changed is not None:
            tensors[name] = changed

    return apply


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (wrong("pointer.stop", lambda value: value[:-1].clone()), "pointer.stop has shape"),
        (wrong("pointer.stop", lambda value: value.double()), "float64"),
        (wrong("pointer.stop", lambda value: value * torch.nan), "pointer.stop holds a number that is not finite"),
        (wrong("pointer.stop", lambda value: value + torch.inf), "not finite"),
        (wrong("pointer.stop", lambda value: None), "'pointer.stop' is missing"),
        (wrong("pointer.go", lambda value: value), "'pointer.go' belongs to no network"),
        (wrong("pointer.go" * 50, lambda value: value), "belongs to no network"),
        (wrong("pointer.go", lambda value: torch.zeros(1 << 20)), "larger than"),
    ],
)
def test_load_agent__other_tensors__are_refused(
    folder: Path, edit: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    """Shapes, types and values are those that the card's network has."""
    tensors = load_file(folder / "weights.safetensors")
    edit(tensors)
    replace_weights(folder, save(tensors))
    with pytest.raises(ValueError, match=message) as caught:
        load_agent(folder)
    assert "weights.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("data", [b"", b"\x00" * 8, b"\xff" * 64, b'\x08\x00\x00\x00\x00\x00\x00\x00{"a":{}}'])
def test_load_agent__broken_weights__are_refused(folder: Path, data: bytes) -> None:
    """Headers that promise what does not follow."""
    replace_weights(folder, data)
    with pytest.raises(ValueError, match=r"weights\.safetensors"):
        load_agent(folder)


def test_load_agent__card_of_the_largest_network__takes_no_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes of card cannot make us reserve gigabytes: real weights come first."""
    for key, value in {"features": 100_000, "volume": 100_000, "width": 1024, "layers": 16}.items():
        change(folder, f"network.{key}", value)
    reserved = []
    original = torch.nn.Parameter.__new__

    def watched(cls: type, data: torch.Tensor, *rest: Any, **options: Any) -> torch.nn.Parameter:
        if data.device.type != "meta":
            reserved.append(data.numel())
        return original(cls, data, *rest, **options)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", watched)
    with pytest.raises(ValueError, match=r"weights\.safetensors: "):
        load_agent(folder)
    assert not reserved


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PATHS = [f"{name}" for name in ("format", "checksum", "kind", "network", "features", "problem", "metric", "weights")]
PATHS += ["training", "metrics", "network.width", "network.heads", "features.source", "problem.slot", "problem.large"]


@pytest.mark.long
@settings(deadline=None, max_examples=150)
@given(key=st.sampled_from(PATHS), value=values)
def test_load_agent__any_value_anywhere__loads_or_is_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    """No content of a card causes any other exception."""
    where = tmp_path_factory.mktemp("agent")
    save_agent(where, policy())
    change(where, key, value)
    with suppress(ValueError):
        load_agent(where)
