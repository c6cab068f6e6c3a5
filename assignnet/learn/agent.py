"""Trained agents: choosing with one, and the two files of which one consists.

Agents get passed on, so their files are read as strangers' files: JSON and plain arrays, which cannot hold code. Every
value is checked, and no network gets memory before the weights have been seen to fit it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from assignnet.choice.cost_model import CostModel
from assignnet.choice.tree import NO_FEATURES, Features, Roi, RoiTree
from assignnet.learn.network import AssignNetwork, NetworkSize, stack
from assignnet.learn.observation import Observation, observe, still_free
from assignnet.learn.ordering import order_by_gains
from assignnet.learn.supervised import GainNetwork, choose_by_gains
from assignnet.value.instance import total_slots
from assignnet.value.voxel_counts import Metric

FORMAT = "coarse2fine agent 1"
CARD, WEIGHTS = "agent.json", "weights.safetensors"
MOST_BYTES = 1 << 20
"""Of the card, and of the weights file beyond the weights themselves; real ones have a few kilobytes."""
LIMITS = {"features": (0, 100_000), "volume": (0, 100_000), "width": (1, 1024), "layers": (1, 16), "heads": (1, 64)}
"""Least and greatest values of ``NetworkSize``: an agent that takes gigabytes is a broken or hostile one."""
REMEDY = "copy the agent's folder again, or train the agent anew"

Network = AssignNetwork | GainNetwork


@dataclass(frozen=True, slots=True)
class AgentCard:
    """What is known of an agent besides its weights.

    Attributes:
        kind: Whether the network chooses itself (``"policy"``), or predicts what regions yield and a dynamic
            programme chooses (``"gains"``).
        network: Shapes of the network.
        features: How the features that it expects are computed: ``source`` (none, coarse, fine), ``downsample_mode``,
            ``pooling_mode``, ``global_info``; ``fingerprint``, the SHA-256 of the feature model; ``foreground``, the
            labels of the coarse model that the heatmap counts (absent or None: all).
        problem: What it was trained for: ``packing`` (same_size, same_scale), ``large`` (resize, native), ``slot``
            and ``native`` in voxels.
        metric: Quality that it was trained to raise.
        weights: Range of lambda that it was trained on. It accepts any; beyond the range it has no experience.
        training: Cases, seed, steps, settings, versions.
        metrics: What it reached, by name.
    """

    kind: Literal["policy", "gains"]
    network: NetworkSize
    features: Mapping[str, Any]
    problem: Mapping[str, Any]
    metric: Metric
    weights: tuple[float, float]
    training: Mapping[str, Any]
    metrics: Mapping[str, float]

    @property
    def anytime(self) -> bool:
        """Whether it puts regions in order for work that may be cut off at any time; then it leaves none out."""
        settings = self.training.get("settings")
        return isinstance(settings, Mapping) and settings.get("anytime") is True


@dataclass(frozen=True, slots=True, eq=False)
class Agent:
    """A trained ``Assigner``: looks at a tree once, then chooses region after region. Deterministic.

    Attributes:
        card: What is known of it.
        network: Is put into evaluation mode; on the CPU.

    Raises:
        ValueError: If the network is not the one that the card describes.
    """

    card: AgentCard
    network: Network

    def __post_init__(self) -> None:
        described = (_KINDS.get(self.card.kind), self.card.network)
        if (type(self.network), self.network.size) != described:
            raise ValueError(f"a {type(self.network).__name__} of {self.network.size} is not the card's {described}")
        self.network.eval()

    def __call__(self, tree: RoiTree, cost_model: CostModel, features: Features = NO_FEATURES) -> tuple[Roi, ...]:
        """Nodes of the tree in the order in which to process them; lambda and the budget are the cost model's.

        Raises:
            ValueError: If the features are not as many as the network was trained with, or a number is not finite.
        """
        if not tree.parents:
            return ()
        size, found = self.card.network, (features.nodes.shape[1], features.volume.size)
        if found != (size.features, size.volume if size.volume else found[1]):
            raise ValueError(
                f"{found[0]} features per region and {found[1]} of the volume, but the agent was trained with "
                f"{size.features} and {size.volume}: use the feature settings of its card"
            )
        observation = observe(tree, cost_model, features)
        if not all(np.isfinite(part).all() for part in (observation.nodes, observation.standing, observation.volume)):
            raise ValueError("a region or its features hold a number that is not finite")
        if isinstance(self.network, GainNetwork):
            choose = order_by_gains if self.card.anytime else choose_by_gains
            return choose(self.network, tree, cost_model, observation, self.card.metric)
        rois = tree.rois
        chosen = _choose(self.network, tree, cost_model, observation, complete=self.card.anytime)
        return tuple(rois[row] for row in chosen)

    def with_metrics(self, metrics: Mapping[str, float]) -> Agent:
        """The same agent with what it reached written on its card."""
        return Agent(replace(self.card, metrics=dict(metrics)), self.network)


_KINDS: Mapping[str, type[Network]] = {"policy": AssignNetwork, "gains": GainNetwork}


def _choose(
    network: AssignNetwork, tree: RoiTree, cost_model: CostModel, observation: Observation, *, complete: bool = False
) -> list[int]:
    """Rows in the order of choice: the best score among what is still allowed, until that is stopping.

    With ``complete``, stopping is allowed only when nothing else is. Ties go to stopping, then to the lowest row. Costs
    are added up in slots, so that the budget is kept exactly.
    """
    total = total_slots(tree, cost_model)
    slots = np.array([cost_model.slots(roi.box) for roi in tree.rois])
    budget, spent = np.inf if cost_model.budget is None else cost_model.budget, 0.0
    taken, chosen = np.zeros(len(slots), dtype=bool), list[int]()
    with torch.inference_mode():
        encoded = network.encoder(*stack([observation]))
        while True:
            left = min(max(budget - spent, 0.0) / total, 2.0)
            status = torch.tensor([[cost_model.weight, spent / total, left, bool(chosen)]], dtype=torch.float32)
            last = torch.tensor([chosen[-1] if chosen else -1])
            scores, _ = network.pointer(encoded, torch.from_numpy(taken)[None], last, status)
            # A budget of a sum of slots has room for these slots, in whatever order they are added up.
            valid = still_free(observation.parent, taken) & (slots <= budget - spent + 1e-9 * total)
            choice = int(
                np.argmax(np.where(np.append(not (complete and valid.any()), valid), scores[0].numpy(), -np.inf))
            )
            if choice == 0:
                return chosen
            chosen.append(choice - 1)
            taken[choice - 1] = True
            spent += slots[choice - 1]


def check_fit(
    card: AgentCard,
    *,
    features: Mapping[str, Any],
    cost_model: CostModel,
    count: int | None = None,
    volume: int | None = None,
) -> list[str]:
    """Why an agent does not fit a run: one plain sentence per reason; none if it fits.

    Args:
        card: The agent's.
        features: The run's feature settings, under the names of ``AgentCard.features``. Names that only one side has
            are not compared.
        cost_model: The run's. Only how boxes are packed and shrunk must agree: the agent sees sizes in units of what
            fits.
        count: Features per region, if known.
        volume: Features of the whole volume, if known.
    """
    packing = "same_size" if cost_model.context is None else "same_scale"
    pairs = [(f"features.{name}", card.features[name], features[name]) for name in card.features if name in features]
    pairs += [
        ("problem.packing", card.problem.get("packing", packing), packing),
        ("problem.large", card.problem.get("large", cost_model.large), cost_model.large),
    ]
    if count is not None:
        pairs.append(("the number of features per region", card.network.features, count))
    if volume is not None and card.network.volume:
        pairs.append(("the number of features of the volume", card.network.volume, volume))
    return [
        f"{name} is {reprlib.repr(ours)}, but the agent was trained with {reprlib.repr(its)}"
        for name, its, ours in pairs
        if its != ours
    ]


def save_agent(folder: Path, agent: Agent) -> None:
    """Write an agent's two files, ``agent.json`` and ``weights.safetensors``; the folder is made if there is none.

    Each file appears as a whole or not at all. The card holds the checksum of its weights, so that two files of
    different agents are never taken for one.

    Raises:
        ValueError: If ``load_agent`` would refuse the agent.
        OSError: If the files cannot be written.
    """
    state = agent.network.state_dict()
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    _check_tensors(tensors, _without_memory(agent.card), folder / WEIGHTS)
    weights = save_tensors(tensors)
    card = _card_bytes(agent.card, hashlib.sha256(weights).hexdigest())
    _parse_card(card, folder / CARD)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / WEIGHTS, weights)
    write_file(folder / CARD, card)


def load_agent(folder: Path) -> Agent:
    """Read an agent that ``save_agent`` wrote; nothing that the files hold is executed.

    Raises:
        ValueError: If a file is missing, damaged, of another format, or holds what no agent has; the message names
            the file, the key and the remedy.
    """
    card, checksum = _parse_card(_read(folder / CARD, MOST_BYTES), folder / CARD)
    network, path = _without_memory(card), folder / WEIGHTS
    expected = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    data = _read(path, expected + MOST_BYTES)
    if hashlib.sha256(data).hexdigest() != checksum:
        raise ValueError(f"{path} is not the file that {CARD} was written with: {REMEDY}")
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}; {REMEDY}") from None
    _check_tensors(tensors, network, path)
    network.load_state_dict(tensors, assign=True)
    return Agent(card, network)


def _without_memory(card: AgentCard) -> Network:
    """The card's network, of which only shapes exist."""
    with torch.device("meta"):
        return _KINDS[card.kind](card.network)


def _check_tensors(tensors: Mapping[str, torch.Tensor], network: Network, path: Path) -> None:
    """Refuse weights that are not those of a network, or not finite."""
    wanted = network.state_dict()
    for name in sorted(wanted.keys() ^ tensors.keys()):
        problem = "is missing" if name in wanted else "belongs to no network of the card's size"
        raise ValueError(f"{path}: the tensor {name[:100]!r} {problem}; {REMEDY}")
    for name, value in wanted.items():
        found = tensors[name]
        if (found.shape, found.dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"{path}: {name} has shape {tuple(found.shape)} and type {found.dtype}, but the network of the card "
                f"has {tuple(value.shape)} and {value.dtype}; {REMEDY}"
            )
        if not found.isfinite().all():
            raise ValueError(f"{path}: {name} holds a number that is not finite; train the agent anew")


def _card_bytes(card: AgentCard, checksum: str) -> bytes:
    """The content of a card's file; its checks are those of reading it."""
    document = {field.name: getattr(card, field.name) for field in fields(card)}
    document |= {"format": FORMAT, "checksum": checksum, "network": card.network.to_dict()}
    document |= {name: dict(document[name]) for name in ("features", "problem", "training", "metrics")}
    try:
        data = (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    except TypeError as error:
        raise ValueError(f"the agent's card holds what JSON cannot: {error}") from None
    if len(data) > MOST_BYTES:
        raise ValueError(f"the agent's card takes {len(data)} bytes, more than {MOST_BYTES}: shorten 'training'")
    return data


def _parse_card(data: bytes, path: Path) -> tuple[AgentCard, str]:
    """The card that a JSON file holds, and the SHA-256 of the weights that belong to it; errors as ``load_agent``."""
    try:
        document = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file that can be used: {error}; {REMEDY}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(
            f"{path} has not the format {FORMAT!r}: check the folder's name, or use the version of this software that "
            "wrote the agent"
        )
    for key, (must_be, is_fine) in _KEYS.items():
        value: Any = document
        for name in key.split("."):
            value = value.get(name)
        if not is_fine(value):
            problem = "is missing" if value is None else f"is {reprlib.repr(value)}"
            raise ValueError(f"{path}: {key} {problem}, but must be {must_be}; {REMEDY}")
    known = {key.split(".")[0] for key in _KEYS}
    sizes = {field.name for field in fields(NetworkSize)}
    for name in sorted((document.keys() - known) | (document["network"].keys() - sizes)):
        raise ValueError(f"{path}: unknown key {name[:100]!r}; {REMEDY}")
    if document["network"]["width"] % document["network"]["heads"]:
        raise ValueError(f"{path}: network.width must be a multiple of network.heads; {REMEDY}")
    checksum = document.pop("checksum")
    document["network"] = NetworkSize(**document["network"])
    document["weights"] = tuple(map(float, document["weights"]))
    return AgentCard(**{field.name: document[field.name] for field in fields(AgentCard)}), checksum


def _is_number(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_list(value: object, length: int, is_fine: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(is_fine, value))


def _whole(least: int, most: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most


def _one_of(*names: str) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {', '.join(names)}", lambda value: value in names


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


_OBJECT = ("an object", lambda value: isinstance(value, dict))
_EDGES = ("three edges in voxels", lambda value: _is_list(value, 3, _whole(1, 1 << 20)[1]))
_KEYS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "format": _one_of(FORMAT),
    "checksum": ("a SHA-256 in hexadecimal", _is_sha256),
    "kind": _one_of(*_KINDS),
    "network": _OBJECT,
    **{f"network.{name}": _whole(*limits) for name, limits in LIMITS.items()},
    "network.start_label": ("true or false", lambda value: isinstance(value, bool)),
    "features": _OBJECT,
    "features.source": _one_of("none", "coarse", "fine"),
    "features.fingerprint": ("a SHA-256 in hexadecimal, or null", lambda value: value is None or _is_sha256(value)),
    "features.foreground": (
        "a list of the coarse model's labels, or null for all",
        lambda value: value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value)),
    ),
    "problem": _OBJECT,
    "problem.packing": _one_of("same_size", "same_scale"),
    "problem.large": _one_of("resize", "native"),
    "problem.slot": _EDGES,
    "problem.native": _EDGES,
    "metric": _one_of("dice", "iou"),
    "weights": (
        "two numbers, the least and the greatest lambda",
        lambda value: _is_list(value, 2, _is_number) and 0 <= value[0] <= value[1],
    ),
    "training": _OBJECT,
    "metrics": ("an object of numbers", lambda value: isinstance(value, dict) and all(map(_is_number, value.values()))),
}
"""Every key of a card: what it must be, in words and as a test. A missing key counts as null."""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is repeated")
    return values


def _read(path: Path, most: int) -> bytes:
    """A file of a folder that may come from anybody, if it is no longer than it can need to be."""
    try:
        if not path.is_file():
            raise ValueError(f"{path} is no file: name the folder of an agent, which holds {CARD} and {WEIGHTS}")
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}; {REMEDY}") from None
    if len(data) > most:
        raise ValueError(f"{path} is larger than the {most} bytes that it can need; {REMEDY}")
    return data


def write_file(path: Path, data: bytes) -> None:
    """Put a whole file in place of another, or none."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
