"""Training an agent: PPO with masked choices, or supervised learning of gains; checkpoints, resuming, evaluation.

A training is cut into rounds. Every round begins with seeds of its own and fresh episodes, so what it does depends on
nothing but its number and the weights: a training that was killed and resumed ends with the same agent as one that
was not.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from assignnet.learn.agent import Agent, AgentCard, write_file
from assignnet.learn.env import AssignEnv, InstanceSource, UniformSource
from assignnet.learn.imitation import imitate
from assignnet.learn.network import AssignNetwork, NetworkSize
from assignnet.learn.policy import AssignPolicy
from assignnet.learn.supervised import GainNetwork, train_gains
from assignnet.value.anytime import mean_area
from assignnet.value.evaluate import evaluate, oracles, summarise
from assignnet.value.instance import Instance
from assignnet.value.reward import AdjacencyReward, AnytimeReward, GainReward, Reward
from assignnet.value.voxel_counts import Metric

Ticks = Callable[[int, int], None]
"""Called with (done, total)."""

BATCH, EPOCHS = 256, 4
"""Samples per gradient step, passes over a round's samples."""
GAMMA, GAE_LAMBDA = 0.9, 0.8
"""Little weight on what comes later: a region's worth hardly depends on later choices, but their rewards are noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How an agent is trained.

    Attributes:
        kind: Reinforcement learning of the choice (``"policy"``), or supervised learning of gains, for which a
            dynamic programme chooses (``"gains"``).
        metric: Quality that is rewarded.
        weights: Range of lambda; every episode draws one, uniform in its logarithm.
        steps: Choices that PPO learns from, or passes of supervised learning over all instances.
        seed: Fixes the result, together with the instances and the number of threads.
        learning_rate: Falls linearly to 0.
        start_label: See ``NetworkSize``.
        order: Weight of the adjacency proxy in the reward; 0 leaves the order free.
        limited: Share of episodes with a limited budget.
        entropy: Weight of PPO's entropy bonus.
        warm_start: Passes of imitating the oracle on the training instances before PPO.
        most: Regions of the largest tree that PPO learns from; what it learns there it applies to larger ones too.
        environments: Episodes that PPO plays side by side.
        round_steps: Choices in each of them per round.
        rounds_between_checks: Rounds from one evaluation and checkpoint to the next.
        anytime: Learn an order for work that may be cut off at any time (``AnytimeReward``); then lambda, budgets and
            ``order`` do not count, and nothing is left out.
    """

    kind: Literal["policy", "gains"] = "policy"
    metric: Metric = "dice"
    weights: tuple[float, float] = (0.01, 0.5)
    steps: int = 100_000
    seed: int = 0
    learning_rate: float = 1e-3
    start_label: bool = False
    order: float = 0.0
    limited: float = 0.1
    entropy: float = 0.001
    warm_start: int = 0
    most: int = 64
    environments: int = 8
    round_steps: int = 128
    rounds_between_checks: int = 5
    anytime: bool = False

    @property
    def per_round(self) -> int:
        """Choices that a round of PPO learns from."""
        return self.environments * self.round_steps


def network_size(instances: Sequence[Instance], settings: TrainSettings) -> NetworkSize:
    """Shapes of the network that fits the features of some instances.

    Raises:
        ValueError: If there are no instances, or their features differ in length.
    """
    found = {(instance.features.nodes.shape[1], instance.features.volume.size) for instance in instances}
    if len(found) != 1:
        raise ValueError(f"instances with features of one length are needed, not of {sorted(found)}")
    nodes, volume = found.pop()
    return NetworkSize(features=nodes, volume=volume, start_label=settings.start_label)


def train_agent(
    train: Sequence[Instance],
    validation: Sequence[Instance],
    settings: TrainSettings,
    folder: Path,
    *,
    features: Mapping[str, Any],
    about: Mapping[str, Any],
    progress: Ticks = lambda done, total: None,
) -> Agent:
    """Train an agent, resuming what an earlier call with the same settings and instances left in ``folder``.

    Args:
        train: Instances to learn from.
        validation: Instances that choose the best of the networks seen during training; of other regions than
            ``train``.
        settings: How.
        folder: Receives ``checkpoint.pt`` while it runs, and TensorBoard's files if that is installed; the agent is
            not written.
        features: Goes into the agent's card.
        about: Goes into the agent's card, about the training data.
        progress: Told about choices learned from, or passes.

    Returns:
        The network that earned most on ``validation``.

    Raises:
        ValueError: If ``folder`` holds a checkpoint of other settings or instances.
    """
    size = network_size([*train, *validation], settings)
    folder.mkdir(parents=True, exist_ok=True)
    if settings.kind == "gains":
        network: AssignNetwork | GainNetwork = _best_gains(train, validation, size, settings, progress)
    else:
        network = _Training(train, validation, size, settings, folder).run(progress)
    example = train[0].cost_model
    problem = {
        "packing": "same_size" if example.context is None else "same_scale",
        "large": example.large,
        "slot": list(example.slot),
        "native": list(example.largest),
    }
    training = {"settings": asdict(settings), **about}
    card = AgentCard(settings.kind, size, dict(features), problem, settings.metric, settings.weights, training, {})
    return Agent(card, network)


def curves_are_kept() -> bool:
    """Whether TensorBoard is installed, in whose files a training of kind ``policy`` leaves its curves."""
    try:
        import torch.utils.tensorboard  # noqa: F401  # an extra, which costs a web server and gRPC
    except ImportError:
        return False
    return True


def _best_gains(
    train: Sequence[Instance],
    validation: Sequence[Instance],
    size: NetworkSize,
    settings: TrainSettings,
    progress: Ticks,
) -> GainNetwork:
    """Supervised learning of gains; the network after the pass that earned most on the validation instances."""
    weights = checked_weights(settings)
    known = {} if settings.anytime else oracles(validation, settings.metric, weights)
    best, state = -np.inf, dict[str, torch.Tensor]()

    def watch(network: GainNetwork) -> None:
        nonlocal best, state
        agent = _bare_agent(network, settings)
        if settings.anytime:
            reached = mean_area(agent, validation, settings.metric)
        else:
            rows = evaluate(agent, validation, settings.metric, weights, known=known)
            reached = float(np.mean([row.reward for row in rows]))
        if reached > best:
            best, state = reached, copy_state(network)

    network = train_gains(
        train,
        size,
        epochs=settings.steps,
        seed=settings.seed,
        learning_rate=settings.learning_rate,
        progress=progress,
        watch=watch,
    )
    network.load_state_dict(state)
    return network


def checked_weights(settings: TrainSettings) -> tuple[float, ...]:
    """Values of lambda at which networks are compared during training."""
    return tuple(np.geomspace(*settings.weights, 4).tolist())


def copy_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a network, on their own."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _digest(instances: Sequence[Instance]) -> str:
    """Checksum of what is learned from instances."""
    digest = hashlib.sha256()
    for instance in instances:
        digest.update(repr((instance.name, instance.case, instance.tree, instance.cost_model)).encode())
        seen, known = instance.features, instance.outcomes
        arrays = seen.nodes, seen.volume, known.count, known.truth, known.outside, known.start, known.node, known.label
        for array in arrays:
            digest.update(array.tobytes())
    return digest.hexdigest()


def _bare_agent(network: AssignNetwork | GainNetwork, settings: TrainSettings) -> Agent:
    """An agent to evaluate, which does not know where it comes from."""
    training = {"settings": asdict(settings)}
    card = AgentCard(settings.kind, network.size, {}, {}, settings.metric, settings.weights, training, {})
    return Agent(card, network)


class _Training:
    """A run of PPO in rounds; see the module's docstring."""

    def __init__(
        self,
        train: Sequence[Instance],
        validation: Sequence[Instance],
        size: NetworkSize,
        settings: TrainSettings,
        folder: Path,
    ) -> None:
        self._settings, self._size, self._folder = settings, size, folder
        self._train = [instance for instance in train if len(instance.tree.rois) <= settings.most]
        if not self._train:
            raise ValueError(f"every tree has more than {settings.most} regions; kind gains learns from such, too")
        self._validation = validation
        self._identity = f"{settings} {size} {_digest(train)} {_digest(validation)}"
        self._rounds = max(1, -(-settings.steps // settings.per_round))
        self._weights = checked_weights(settings)
        self._oracles = {} if settings.anytime else oracles(validation, settings.metric, self._weights)
        self._model = self._build()
        self._round, self._best = 0, -np.inf
        self._best_network = copy_state(self._network)

    def run(self, progress: Ticks) -> AssignNetwork:
        """Train to the end; returns the best network."""
        self._resume()
        logger = Logger(None, [])
        if curves_are_kept():
            logger = configure(str(self._folder / "tensorboard"), ["tensorboard"])
        self._model.set_logger(logger)
        if self._round == 0 and self._settings.warm_start:
            imitate(
                self._network,
                self._train,
                self._settings.metric,
                self._settings.weights,
                passes=self._settings.warm_start,
                seed=self._settings.seed,
            )
            self._evaluate(logger)
        while self._round < self._rounds:
            self._one_round()
            if self._round % self._settings.rounds_between_checks == 0 or self._round == self._rounds:
                self._evaluate(logger)
                self._save()
            progress(min(self._round * self._settings.per_round, self._settings.steps), self._settings.steps)
        network = AssignNetwork(self._size)
        network.load_state_dict(self._best_network)
        return network.eval()

    def _build(self) -> MaskablePPO:
        settings = self._settings
        reward: Reward = GainReward(settings.metric)
        if settings.anytime:
            reward = AnytimeReward(settings.metric)
        elif settings.order > 0:
            reward = AdjacencyReward(settings.metric, settings.order)
        most = max(len(instance.tree.rois) for instance in self._train)
        source: InstanceSource = UniformSource(self._train)

        def build() -> AssignEnv:
            return AssignEnv(
                source,
                reward,
                max_nodes=most,
                features=self._size.features,
                volume=self._size.volume,
                weights=settings.weights,
                limited=0.0 if settings.anytime else settings.limited,
                complete=settings.anytime,
            )

        self._environments = VecMonitor(DummyVecEnv([build for _ in range(settings.environments)]))
        return MaskablePPO(
            AssignPolicy,
            self._environments,
            policy_kwargs={"size": self._size},
            n_steps=settings.round_steps,
            batch_size=min(BATCH, settings.per_round),
            n_epochs=EPOCHS,
            gamma=GAMMA,
            gae_lambda=GAE_LAMBDA,
            clip_range=0.2,
            ent_coef=settings.entropy,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            device="cpu",
        )

    def _one_round(self) -> None:
        model = self._model
        # Environment i gets seed + i, so seeds of rounds must lie far apart, or episodes would come again.
        seed = int(np.random.SeedSequence([self._settings.seed, self._round]).generate_state(1)[0])
        set_random_seed(seed)
        self._environments.seed(seed)
        model._last_obs = None  # fresh episodes
        rate = self._settings.learning_rate * (1 - self._round / self._rounds)
        model.lr_schedule = lambda _: rate
        model.learn(self._settings.per_round, reset_num_timesteps=False)
        self._round += 1

    def _evaluate(self, logger: Logger) -> None:
        """Reward on the validation instances with greedy choices; the best network so far is kept."""
        agent, settings = _bare_agent(self._network, self._settings), self._settings
        if settings.anytime:
            reached = mean_area(agent, self._validation, settings.metric)
        else:
            rows = evaluate(agent, self._validation, settings.metric, self._weights, known=self._oracles)
            reached = float(np.mean([row.reward for row in rows]))
            for weight, summary in summarise(rows).items():
                logger.record(f"validation/oracle_fraction_at_{weight:.3f}", summary.oracle_fraction)
        logger.record("validation/reward", reached)
        logger.dump(self._model.num_timesteps)
        if reached > self._best:
            self._best, self._best_network = reached, copy_state(self._network)

    @property
    def _network(self) -> AssignNetwork:
        """The network that is being trained."""
        return cast(AssignPolicy, self._model.policy).network

    @property
    def _checkpoint(self) -> Path:
        return self._folder / "checkpoint.pt"

    def _save(self) -> None:
        state = {
            "identity": self._identity,
            "round": self._round,
            "steps": self._model.num_timesteps,
            "best": self._best,
            "best_network": self._best_network,
            "policy": self._model.policy.state_dict(),
            "optimizer": self._model.policy.optimizer.state_dict(),
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_file(self._checkpoint, content.getvalue())

    def _resume(self) -> None:
        if not self._checkpoint.exists():
            return
        state = torch.load(self._checkpoint, weights_only=True)
        if state.get("identity") != self._identity:
            raise ValueError(
                f"{self._checkpoint} is of a training with other settings or instances: remove it, or choose another "
                "folder"
            )
        self._model.policy.load_state_dict(state["policy"])
        self._model.policy.optimizer.load_state_dict(state["optimizer"])
        self._model.num_timesteps = state["steps"]
        self._round, self._best, self._best_network = state["round"], state["best"], state["best_network"]
