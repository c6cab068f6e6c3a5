"""What can be learned, by the names that users know it by. A new objective is a line of ``METHODS``.

Names are summed with a plus: ``mae+rotation``. Options that only one of them has are fields of a frozen dataclass with
defaults, and are given as ``NAME.FIELD=VALUE``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import isfinite
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from coarse2fine.errors import ConfigError
from coarse2fine.networks.features import channels_of
from coarse2fine.networks.vit import ViT, seeded
from coarse2fine.pretrain.blocks import Blocks
from coarse2fine.pretrain.contrast import MomentumContrast
from coarse2fine.pretrain.convirt import convirt
from coarse2fine.pretrain.dira import PARTS, Dira
from coarse2fine.pretrain.discriminator import Discriminator
from coarse2fine.pretrain.exemplar import Exemplar
from coarse2fine.pretrain.jigsaw import Jigsaw
from coarse2fine.pretrain.mae import MaskedAutoencoding
from coarse2fine.pretrain.mae_tokens import Decoder, DecoderShape, TokenAutoencoding, patch_blocks
from coarse2fine.pretrain.masking import Masking
from coarse2fine.pretrain.mrm import deep_blocks, masked_records
from coarse2fine.pretrain.objective import Method
from coarse2fine.pretrain.options import DiraOptions, ExemplarOptions, JigsawOptions, RotationOptions
from coarse2fine.pretrain.record_options import ConvirtOptions, MrmOptions, RecordOptions, RefersOptions
from coarse2fine.pretrain.records.vocabulary import Vocabulary
from coarse2fine.pretrain.refers import refers
from coarse2fine.pretrain.rotation import Rotation
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.views import Looks
from coarse2fine.system.terminal import shown


@dataclass(frozen=True, slots=True)
class Task:
    """What a method is made for.

    Attributes:
        network: That learns; heads are made for its width.
        image: Shape of images without channels.
        settings: What users chose.
        vocabulary: Of reports, where there are some.
    """

    network: nn.Module
    image: tuple[int, ...]
    settings: Settings
    vocabulary: Vocabulary | None = None


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Of what has none of its own."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to learn.

    Attributes:
        make: Makes a method of a task, and of the options.
        says: What it is, for users.
        options: Frozen dataclass of the options that only it has, all with defaults.
    """

    make: Callable[[Task, Any], Method]
    says: str
    options: type = NoOptions


@dataclass(frozen=True, slots=True)
class MaeOptions:
    """Of masked autoencoding by a vision transformer.

    Attributes:
        width, depth, heads: Of the decoder; None: what is usual, see ``DecoderShape``.
    """

    width: int | None = None
    depth: int | None = None
    heads: int | None = None


def _mae(task: Task, options: MaeOptions) -> Method:
    chosen = task.settings
    if isinstance(task.network, ViT):
        shape = task.network.shape
        decoder = DecoderShape.of(shape, options.width, options.depth, options.heads)
        masking = Masking(patch_blocks(shape), chosen.mask, chosen.ratio, chosen.sigma)
        head = Decoder(shape, decoder)
        return Method({"mae": TokenAutoencoding(masking, shape, head, chosen.norm_pix, chosen.loss_everywhere)})
    if options != MaeOptions():
        raise ConfigError(
            "--set changes the decoder of mae, but nnU-Net's networks have one of their own",
            "Leave out --set mae.width, mae.depth and mae.heads.",
        )
    masking = Masking(Blocks.of(task.image, chosen.block), chosen.mask, chosen.ratio, chosen.sigma)
    return Method({"mae": MaskedAutoencoding(masking, chosen.norm_pix, chosen.loss_everywhere)})


def _rotation(task: Task, options: RotationOptions) -> Method:
    return Method({"rotation": Rotation(task.network, task.image, options.covered)})


def _jigsaw(task: Task, options: JigsawOptions) -> Method:
    seed = task.settings.schedule.seed
    return Method({"jigsaw": Jigsaw(task.network, task.image, options.covered, options.orders, seed)})


def _exemplar(task: Task, options: ExemplarOptions) -> Method:
    looks, batch = Looks(options.least), task.settings.schedule.batch
    objective = Exemplar(task.network, task.image, options.covered, looks, options.temperature, batch)
    return Method({"exemplar": objective})


def _dira(parts: Sequence[str], task: Task, options: DiraOptions) -> Method:
    schedule, looks = task.settings.schedule, Looks(options.least)
    shares = options.shares(parts, len(task.image))
    contrast = discriminator = None
    if shares.discriminative:
        queue = min(options.queue, schedule.steps * schedule.batch)
        contrast = MomentumContrast(task.network, queue, options.momentum, options.temperature)
    if shares.adversarial:
        discriminator = Discriminator(channels_of(task.network), task.image, options.rate)
    return Method({"dira": Dira(task.network, shares, contrast, discriminator, options.form, looks)})


def _mrm(deep: bool, task: Task, options: MrmOptions) -> Method:
    chosen, vocabulary = task.settings, _vocabulary(task)
    if not isinstance(task.network, ViT):
        raise ConfigError(f"{chosen.objective} hides patches of a vision transformer", "Use --network vit.")
    if chosen.loss_everywhere:
        raise ConfigError(f"--loss-everywhere has no meaning for {chosen.objective}", "Leave it out.")
    shape = task.network.shape
    objective = masked_records(
        shape,
        Masking(patch_blocks(shape), chosen.mask, chosen.ratio, chosen.sigma),
        options.text(vocabulary.size),
        vocabulary.continues,
        decoder=DecoderShape.of(shape, options.decoder_width, options.decoder_depth, options.decoder_heads),
        blocks=deep_blocks(shape.depth) if deep else (),
        share=options.words,
        normalised=chosen.norm_pix or (not deep if options.normalised is None else options.normalised),
        detail=options.detail,
    )
    return Method({"deep-mrm" if deep else "mrm": objective})


def _convirt(task: Task, options: ConvirtOptions) -> Method:
    text, width = options.text(_vocabulary(task).size), options.projection
    made = convirt(task.network, text, width=width, temperature=options.temperature, share=options.share)
    return Method({"convirt": made})


def _refers(task: Task, options: RefersOptions) -> Method:
    text = options.text(_vocabulary(task).size)
    made = refers(
        task.network,
        text,
        views=options.views,
        width=options.projection,
        temperature=options.temperature,
        share=options.share,
    )
    return Method({"refers": made})


def _vocabulary(task: Task) -> Vocabulary:
    if task.vocabulary is None:
        raise ConfigError(
            f"{task.settings.objective} learns from reports", "Name their column in the table: --text NAME."
        )
    return task.vocabulary


METHODS: Mapping[str, Entry] = {
    "mae": Entry(_mae, "paint what is hidden", MaeOptions),
    "rotation": Entry(_rotation, "by which right angles an image was turned", RotationOptions),
    "jigsaw": Entry(_jigsaw, "in which order tiles were put", JigsawOptions),
    "exemplar": Entry(_exemplar, "which two looks are of the same image", ExemplarOptions),
    "dira": Entry(partial(_dira, PARTS), "tell images apart, restore them, deceive a discriminator", DiraOptions),
    "dira-first": Entry(partial(_dira, PARTS[:2]), "the same without discriminator: dira's first stage", DiraOptions),
    "mrm": Entry(partial(_mrm, False), "paint hidden patches, find hidden words of the report", MrmOptions),
    "deep-mrm": Entry(partial(_mrm, True), "the same, painting after several blocks", MrmOptions),
    "convirt": Entry(_convirt, "which report belongs to an image", ConvirtOptions),
    "refers": Entry(_refers, "the same of several views, and what the report says", RefersOptions),
    **{f"dira-{part}": Entry(partial(_dira, (part,)), f"the {part} part of dira alone", DiraOptions) for part in PARTS},
}


def method_of(task: Task) -> Method:
    """The weighted sum of all that was chosen.

    Raises:
        ConfigError: If a name, an option or a value is unknown or has no meaning.
    """
    chosen = _names(task.settings.objective)
    _check_weights(task.settings.factors, chosen)
    own = _options(task.settings.own, chosen)
    objectives, weights = {}, {}
    for name in chosen:
        with seeded(task.settings.schedule.seed):  # weights of heads
            method = METHODS[name].make(task, own[name])
        for part, objective in method.objectives.items():
            if part in objectives:
                raise ConfigError(
                    f"--objective {shown(task.settings.objective)} names {part} twice", "Leave one of them out."
                )
            objectives[part] = objective
            weights[part] = method.weights.get(part, 1.0) * task.settings.factors.get(name, 1.0)
    return Method(objectives, weights)


def reports_of(settings: Settings) -> RecordOptions | None:
    """Options of what is learned from reports, if anything is.

    Raises:
        ConfigError: If something else is learned at once that needs other batches.
    """
    chosen = _names(settings.objective)
    found = [one for one in _options(settings.own, chosen).values() if isinstance(one, RecordOptions)]
    if found and len(chosen) > 1:
        raise ConfigError(
            f"--objective {shown(settings.objective)} adds to what is learned from reports",
            "Learn one after the other: begin with the weights of the first by --weights.",
        )
    return found[0] if found else None


def _names(text: str) -> list[str]:
    names = text.split("+")
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"--objective has {shown(name)}, which is unknown", f"There are {', '.join(METHODS)}.")
    if len(set(names)) < len(names):
        raise ConfigError(f"--objective {shown(text)} names something twice", "Use --weight to make it count more.")
    return names


def _check_weights(weights: Mapping[str, float], chosen: list[str]) -> None:
    for name, weight in weights.items():
        if name not in chosen:
            raise ConfigError(f"--weight is given for {shown(name)}", f"There is {', '.join(chosen)} (--objective).")
        if not (isfinite(weight) and weight > 0):
            raise ConfigError(f"the weight of {name} is {weight:g}", "It must be a number above 0.")


def _options(own: Mapping[str, str], chosen: list[str]) -> dict[str, Any]:
    """Options of each name, read and checked."""
    given: dict[str, dict[str, str]] = {name: {} for name in chosen}
    known = [f"{name}.{one.name}" for name in chosen for one in fields(METHODS[name].options)]
    for key, value in own.items():
        if key not in known:
            there = f"There is {', '.join(known)}." if known else "Leave it out."
            raise ConfigError(f"--set {shown(key)} is no option of {'+'.join(chosen)}", there)
        name, _, option = key.partition(".")
        given[name][option] = value
    return {name: _checked(name, values) for name, values in given.items()}


def _checked(name: str, values: dict[str, str]) -> Any:
    try:
        return TypeAdapter(METHODS[name].options).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([name, *map(str, first["loc"][:1])])
        raise ConfigError(
            f"--set {key}={shown(first['input'])} cannot be: {first['msg']}", f"Leave {key} out for what is usual."
        ) from None
