"""Which labels of the coarse model the heatmap counts, and where both models must have the same labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from coarse2fine.config.schema import Config
from coarse2fine.config.validation import did_you_mean
from coarse2fine.errors import ConfigError, ModelError
from coarse2fine.nnunet.labels import Labels
from coarse2fine.nnunet.model import Model
from coarse2fine.system.terminal import plain, shown

MOST_SHOWN = 30
"""Labels of a model that a message about two models lists."""


def counted_heads(names: Sequence[str] | None, model: Model) -> tuple[int, ...] | None:
    """The outputs that count as foreground, ascending; None if all but the background's do.

    Args:
        names: ``coarse.foreground``.
        model: The coarse model.

    Raises:
        ConfigError: If these are not some of the model's foreground labels, each once.
    """
    if names is None:
        return None
    known, kind = model.labels.head_of, "regions" if model.labels.regions else "foreground labels"
    problems = list(_problems(names, model))
    if problems:
        raise ConfigError(
            f"coarse.foreground: {'; '.join(problems)}",
            f"{model.folder / 'dataset.json'} has the {kind} {', '.join(map(shown, known))}: list those that count, or "
            "set null for all.",
        )
    heads = tuple(sorted({known[name] for name in names}))
    return None if len(heads) == len(set(known.values())) else heads


def counted_names(names: Sequence[str] | None, model: Model) -> list[str] | None:
    """The names of what counts in the model's own order; None for all; arguments and errors as ``counted_heads``."""
    heads = counted_heads(names, model)
    return None if heads is None else [name for name, head in model.labels.head_of.items() if head in heads]


def _problems(names: Sequence[str], model: Model) -> Iterator[str]:
    """What is wrong with each name."""
    if not names:
        yield "found [], so that nothing would be looked for"
    known, dataset = model.labels.head_of, model.folder / "dataset.json"
    for name, count in Counter(names).items():
        if name in known:
            if count > 1:
                yield f"{shown(name)} is named {count} times"
        elif name == "ignore" and model.labels.ignore is not None:
            yield f"{shown(name)} is the label of voxels that nobody decided on, which no network finds"
        elif name in model.labels.names:
            yield f"{shown(name)} is background"
        else:
            question = plain(did_you_mean(name, known))
            yield f"{shown(name)} is no label in {dataset}{'; ' + question if question else ''}"


def check_labels(config: Config, coarse: Model, fine: Model) -> None:
    """Refuse labels that do not exist, and different ones where a coarse label stands for a fine one.

    Raises:
        ConfigError: If ``coarse.foreground`` does not name labels of the coarse model.
        ModelError: If both models must have the same labels, but have not.
    """
    counted_heads(config.coarse.foreground, coarse)
    if fine.cascade:
        check_same_labels(
            coarse,
            fine,
            f"fine.use_prior hands the coarse labels to {fine.folder} ({fine.configuration})",
            "Use the coarse model that the cascade was trained with, or with fine.use_prior: false a 3d_fullres model.",
        )
    if config.fine.outside == "coarse" and config.mode != "one-stage":
        check_same_labels(
            coarse,
            fine,
            "fine.outside: coarse writes coarse labels into the result",
            "Set fine.outside: background, or use two models trained on the same labels.",
        )


def check_same_labels(coarse: Model, fine: Model, because: str, remedy: str) -> None:
    """Refuse models whose labels differ.

    Args:
        coarse: One.
        fine: The other.
        because: What needs the same labels.
        remedy: What can be done.

    Raises:
        ModelError: Naming the labels of both.
    """
    if not coarse.labels.agree_with(fine.labels):
        raise ModelError(
            f"{because}, but the models have different labels: {_listed(coarse.labels)} in {coarse.folder}, "
            f"{_listed(fine.labels)} in {fine.folder}",
            remedy,
        )


def _listed(labels: Labels) -> str:
    """All labels with their values, and of regions what they paint."""
    more = len(labels.names) - MOST_SHOWN
    parts = [f"{shown(name)}: {shown(value)}" for name, value in islice(labels.names.items(), MOST_SHOWN)]
    order = f" with regions_class_order {shown(list(labels.regions))}" if labels.regions else ""
    return f"{{{', '.join(parts)}{f', and {more} more' if more > 0 else ''}}}{order}"


def foreground_doubts(config: Config, coarse: Model, fine: Model) -> tuple[str, ...]:
    """A warning if the coarse model knows labels of the fine one that do not count: objects of theirs are lost.

    Args:
        config: All settings.
        coarse: The coarse model.
        fine: The fine model.
    """
    names = counted_names(config.coarse.foreground, coarse)
    if names is None or config.fine.outside == "coarse":
        return ()
    lost = [name for name in coarse.labels.left_out(names) if name in fine.labels.head_of]
    if not lost:
        return ()
    return (
        f"coarse.foreground leaves out {', '.join(map(shown, lost))}, which both models segment: of that only what "
        "lies in boxes around the labels that it names is found",
    )
