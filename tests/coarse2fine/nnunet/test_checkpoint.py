"""Model folders: usual variants load, every bad one ends in an error that names the file and a remedy."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_edits import (
    CHECKPOINT,
    DATA,
    NETWORK,
    PLANS,
    USED,
    edit_checkpoint,
    edit_json,
    edit_pickle,
    follow,
    get,
    in_checkpoint,
    put,
    set_key,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from coarse2fine.errors import C2FError, ModelError
from coarse2fine.nnunet.loading import load_model

# --- what must work --------------------------------------------------------------------------------------------------


def with_2d(plans: dict[str, Any]) -> None:
    """The usual plans of nnU-Net describe a 2D configuration, too."""
    flat = json.dumps(get(plans, USED)).replace("Conv3d", "Conv2d").replace("InstanceNorm3d", "InstanceNorm2d")
    put(plans, "configurations.2d", json.loads(flat) | {"patch_size": [16, 16], "spacing": [1.0, 1.0]})


def in_old_format(plans: dict[str, Any]) -> None:
    """Before version 2.5 nnU-Net described the network beside the other settings."""
    for section in plans["configurations"].values():
        arguments = section.pop("architecture")["arch_kwargs"]
        section |= {
            "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1], "num_pool_per_axis": [1, 2, 2],
            "pool_op_kernel_sizes": arguments["strides"], "conv_kernel_sizes": arguments["kernel_sizes"],
        }  # fmt: skip


def residual(plans: dict[str, Any]) -> None:
    """The residual encoder, under the shorter names of layers and with dropout."""
    architecture = get(plans, f"{USED}.architecture")
    architecture["network_class_name"] = f"{NETWORK}.ResidualEncoderUNet"
    arguments = architecture["arch_kwargs"]
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    arguments |= {"conv_op": "torch.nn.Conv3d", "dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.5}}


VARIANTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "2d beside": with_2d,
    "old format": in_old_format,
    "residual encoder": residual,
    "inheritance": lambda plans: put(plans, USED, {"inherits_from": "spare", "batch_size": 7}),
    "no statistics": lambda plans: put(plans, "foreground_intensity_properties_per_channel", {"0": {"mean": np.nan}}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_load_model__usual_variants_of_plans__give_nnunets_network(
    folder: Path, variant: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Plans as nnU-Net's versions write them load quietly, into the network that nnU-Net builds from them."""
    edit_json(folder / "plans.json", VARIANTS[variant])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plans = PlansManager(json.loads((folder / "plans.json").read_text()))
        configuration = plans.get_configuration("3d_fullres")
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        3,
        deep_supervision=False,
    ).eval()
    edit_checkpoint(folder, lambda content: content.update(network_weights=network.state_dict()))
    capfd.readouterr()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(folder)
    assert capfd.readouterr() == ("", "")
    image = torch.rand(1, 1, 8, 16, 16)
    with torch.inference_mode():
        assert torch.equal(model.forward(image, mirroring=False), network(image))
    assert (model.patch, model.divisor, model.spacing) == ((8, 16, 16), (2, 4, 4), (2.0, 1.0, 1.0))


# --- broken folders --------------------------------------------------------------------------------------------------


def cut(file: str, share: float) -> Callable[[Path], object]:
    """A way to damage a folder: keep only the first part of a file."""

    def shorten(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * share)])

    return shorten


def write(file: str, content: bytes) -> Callable[[Path], object]:
    """A way to damage a folder: replace a file."""
    return lambda folder: (folder / file).write_bytes(content)


def misfit(content: dict[str, Any]) -> None:
    content["network_weights"]["decoder.seg_layers.1.weight"] = torch.zeros(7, 4, 1, 1, 1)


def not_plain(tensor: torch.Tensor) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["network_weights"].update({"encoder.stages.0.0.convs.0.conv.weight": tensor})


KWARGS = f"{USED}.architecture.arch_kwargs"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"model folder .*model does not exist"),
    "no plans": (lambda folder: (folder / PLANS).unlink(), r"plans\.json does not exist"),
    "no dataset": (lambda folder: (folder / DATA).unlink(), r"dataset\.json does not exist"),
    "no fold": (lambda folder: shutil.rmtree(folder / "fold_all"), r"no fold with a checkpoint_final\.pth"),
    "other checkpoint": (
        lambda folder: (folder / CHECKPOINT).rename(folder / "fold_all" / "checkpoint_best.pth"),
        r"Name one that is there .*: checkpoint_best\.pth",
    ),
    "plans are a folder": (lambda folder: ((folder / PLANS).unlink(), (folder / PLANS).mkdir()), "Is a directory"),
    "cut plans": (cut(PLANS, 0.9), r"plans\.json cannot be read"),
    "cut dataset": (cut(DATA, 0.5), r"dataset\.json cannot be read"),
    "list as plans": (write(PLANS, b"[]"), "not a JSON object"),
    "binary plans": (write(PLANS, b"\x80\x04\xff"), "cannot be read"),
    "deep plans": (write(PLANS, b"[" * 100_000), "cannot be read"),
    "endless number": (write(PLANS, b"1" * 10_000), "cannot be read"),
    "empty plans": (write(PLANS, b"{}"), "no 'configurations'"),
    "empty checkpoint": (write(CHECKPOINT, b""), "is damaged"),
    "text as checkpoint": (write(CHECKPOINT, b"no checkpoint" * 9), "damaged or no checkpoint"),
    "half a checkpoint": (cut(CHECKPOINT, 0.5), "is damaged"),
    "almost a checkpoint": (cut(CHECKPOINT, 0.99), "is damaged"),
    "only weights": (in_checkpoint(lambda content: content.pop("init_args")), "not a checkpoint of nnU-Net v2"),
    "tensor as checkpoint": (lambda folder: torch.save(torch.ones(3), folder / CHECKPOINT), "not a checkpoint"),
    "scalar as name": (
        in_checkpoint(lambda content: content["init_args"].update(configuration=np.str_("3d_fullres"))),
        "not a checkpoint of nnU-Net v2",
    ),
    "mirror axis 5": (
        in_checkpoint(lambda content: content.update(inference_allowed_mirroring_axes=(0, 5))),
        r"inference_allowed_mirroring_axes \(0, 5\)",
    ),
    "other configuration": (
        lambda folder: edit_json(folder / PLANS, lambda plans: plans["configurations"].pop("3d_fullres")),
        "'3d_fullres', which is not in plans.json",
    ),
    "misfit": (
        in_checkpoint(misfit),
        r"decoder\.seg_layers\.1\.weight is \(7, 4, 1, 1, 1\) instead of \(3, 4, 1, 1, 1\)",
    ),
    "weights missing": (in_checkpoint(lambda content: content.update(network_weights={})), "missing instead of"),
    "numbers as weights": (in_checkpoint(lambda content: content["network_weights"].update(x=1)), "not plain tensors"),
    "sparse weights": (in_checkpoint(not_plain(torch.zeros(4, 1, 3, 3, 3).to_sparse())), "not plain tensors"),
    "weights without memory": (in_checkpoint(not_plain(torch.zeros(4, 1, 3, 3, 3, device="meta"))), "not plain"),
    "2D": (set_key(PLANS, f"{USED}.patch_size", [16, 16]), "2D"),
    "patch is text": (set_key(PLANS, f"{USED}.patch_size", "888"), "patch_size is '888'"),
    "patch is odd": (set_key(PLANS, f"{USED}.patch_size", [8, 16, 15]), "strides"),
    "patch is huge": (set_key(PLANS, f"{USED}.patch_size", [8, 16, 10**9]), "patch_size"),
    "spacing 0": (set_key(PLANS, f"{USED}.spacing", [1, 0, 1]), "spacing"),
    "spacing NaN": (set_key(PLANS, f"{USED}.spacing", [1, float("nan"), 1]), "spacing"),
    "axes twice": (set_key(PLANS, "transpose_forward", [0, 1, 1]), "transpose_forward"),
    "a channel too many": (set_key(DATA, "channel_names", {"0": "a", "1": "b"}), "normalization_schemes"),
    "channels are a number": (set_key(DATA, "channel_names", 1), "channel_names is 1"),
    "CT without numbers": (
        lambda folder: (
            set_key(PLANS, f"{USED}.normalization_schemes", ["CTNormalization"])(folder),
            set_key(PLANS, "foreground_intensity_properties_per_channel", {"0": {"mean": 1, "std": 1}})(folder),
        ),
        "percentile",
    ),
    "labels are text": (set_key(DATA, "labels", {"background": 0, "a": "x", "b": 2}), r"dataset\.json is .*malformed"),
    "label too high": (set_key(DATA, "labels", {"background": 0, "a": 1, "b": 70_000}), "labels is"),
    "no background": (set_key(DATA, "labels", {"a": 1, "b": 2}), "[Bb]ackground"),
    "a billion stages": (set_key(PLANS, f"{KWARGS}.n_stages", 10**9), "n_stages is 1000000000"),
    "a billion layers": (set_key(PLANS, f"{KWARGS}.n_conv_per_stage", [10**9, 1, 1]), "n_conv_per_stage is"),
    "a billion features": (set_key(PLANS, f"{KWARGS}.features_per_stage", [10**9] * 3), "does not fit|malformed"),
    "options are text": (set_key(PLANS, f"{KWARGS}.norm_op_kwargs", {"eps": "x"}), "norm_op_kwargs"),
    "own parent": (set_key(PLANS, USED, {"inherits_from": "3d_fullres"}), "malformed"),
    "no architecture": (set_key(PLANS, f"{USED}.architecture", None), "architecture"),
    "a stage more": (set_key(PLANS, f"{KWARGS}.features_per_stage", [4, 8, 16]), "does not fit the network"),
    "outputs stay resampled": (
        lambda folder: (
            set_key(PLANS, f"{USED}.resampling_fn_probabilities", "no_resampling_hack")(folder),
            set_key(PLANS, f"{USED}.resampling_fn_probabilities_kwargs", {})(folder),
        ),
        "outputs are not brought back",
    ),
    "large plans": (write(PLANS, b'{"a": "' + b"a" * (1 << 20) + b'"}'), r"plans\.json has 1048585 bytes"),
    "reader of pictures": (set_key(PLANS, "image_reader_writer", "NaturalImage2DIO"), "reads 2D images"),
    "spline of order 9": (
        set_key(PLANS, f"{USED}.resampling_fn_data_kwargs", {"order": 9}),
        "resampling_fn_data_kwargs",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_load_model__broken_folder__says_what_is_wrong(
    folder: Path, pristine: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each kind of damage ends in a short error with the path, the problem and a remedy that works; nothing is printed.

    The remedy is followed to the letter: only what it names is replaced.
    """
    damage, message = BROKEN[name]
    damage(folder)
    capfd.readouterr()
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert str(folder) in caught.value.problem
    assert len(str(caught.value)) < 1000
    load_model(folder, **follow(caught.value.remedy, folder, pristine))
    assert capfd.readouterr() == ("", "")


def test_load_model__one_of_two_folds_has_failed__remedies_work(model_folder: Callable[..., Path]) -> None:
    """Another fold or another checkpoint is what the message tells to use, and so it does for a fold that is not."""
    folder = model_folder(folds=("0", "1"))
    failed = folder / "fold_1/checkpoint_final.pth"
    for fold in ("0", "1"):
        shutil.copy(folder / f"fold_{fold}/checkpoint_final.pth", folder / f"fold_{fold}/checkpoint_best.pth")
    content = torch.load(failed, weights_only=False)
    content["network_weights"]["decoder.seg_layers.1.bias"][0] = np.nan
    torch.save(content, failed)
    with pytest.raises(ModelError, match="numbers that are not finite") as caught:
        load_model(folder)
    assert caught.value.remedy.startswith("Use another checkpoint or fold")
    with pytest.raises(ModelError, match=r"fold_3.* does not exist") as caught:
        load_model(folder, folds=("3",))
    assert caught.value.remedy.startswith("Name another checkpoint or fold")
    for options in ({"folds": ("0",)}, {"checkpoint": "checkpoint_best.pth"}):
        load_model(folder, **options)


@pytest.mark.parametrize("what", ["data", "probabilities"])
@pytest.mark.parametrize("option", ["mode", "aniso_axis_mode"])
def test_load_model__way_of_resampling_that_is_none__those_in_the_message_load(
    folder: Path, what: str, option: str
) -> None:
    """Every name that the message lists is one that a model may have been planned with."""
    for each in ("data", "probabilities"):
        set_key(PLANS, f"{USED}.resampling_fn_{each}", "resample_torch_fornnunet")(folder)
        set_key(PLANS, f"{USED}.resampling_fn_{each}_kwargs", {})(folder)
    key = f"resampling_fn_{what}_kwargs"
    set_key(PLANS, f"{USED}.{key}", {option: "bicubical"})(folder)
    with pytest.raises(ModelError, match=f"{key}.{option} is 'bicubical'") as caught:
        load_model(folder)
    names = caught.value.remedy.removeprefix("Use a model that was planned with one of ").removesuffix(".").split(", ")
    assert len(names) >= 2
    for name in names:
        set_key(PLANS, f"{USED}.{key}", {option: name})(folder)
        load_model(folder)


@pytest.mark.parametrize("what", ["data", "probabilities"])
def test_load_model__option_that_resampling_does_not_take__removed(folder: Path, what: str) -> None:
    """It is removed where the message says; what the function takes is listed, and what nnU-Net wrote is among it."""
    path, key = folder / PLANS, f"{USED}.resampling_fn_{what}_kwargs"
    text = path.read_text()
    written = get(json.loads(text), key)
    set_key(PLANS, key, {**written, "orders": 3})(folder)
    with pytest.raises(ModelError, match=f"resampling_fn_{what}_kwargs has the option 'orders'") as caught:
        load_model(folder)
    assert caught.value.remedy.startswith("Remove it there; ")
    taken = caught.value.remedy.partition(" takes ")[2].removesuffix(".").split(", ")
    assert set(written) <= set(taken)
    path.write_text(text)
    load_model(folder)


@pytest.mark.usefixtures("modes_are_obeyed")
@pytest.mark.parametrize("file", [PLANS, DATA, CHECKPOINT])
def test_load_model__file_that_may_not_be_read__remedy_works(folder: Path, file: str) -> None:
    """The command in the message makes the model load."""
    (folder / file).chmod(0)
    with pytest.raises(ModelError, match="may not be read") as caught:
        load_model(folder)
    subprocess.run(shlex.split(caught.value.remedy.partition(": ")[2]), check=True)
    load_model(folder)


# --- anything else ---------------------------------------------------------------------------------------------------


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-1, 20)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["os.system", "torch.nn.ReLU", "3d_fullres", "spare"]),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON document."""
    for key in document if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from places(document[key])


def returns_or_explains(folder: Path) -> None:
    with contextlib.suppress(C2FError):
        load_model(folder)


@pytest.mark.long
@FUZZ
@given(data=st.data(), file=st.sampled_from([PLANS, PLANS, DATA]), value=JSON, delete=st.booleans())
def test_load_model__any_json_anywhere__returns_or_explains(
    pristine: Path, folder: Path, data: st.DataObject, file: str, value: object, delete: bool
) -> None:
    """No value in any place of plans or dataset description gets through to a crash."""
    document = json.loads((pristine / file).read_text())
    container, key = data.draw(st.sampled_from(list(places(document))))
    if delete:
        del container[key]
    else:
        container[key] = value
    (folder / file).write_text(json.dumps(document))
    returns_or_explains(folder)
    shutil.copy(pristine / file, folder / file)


@pytest.mark.long
@FUZZ
@given(position=st.floats(0, 1, exclude_max=True), junk=st.binary(max_size=3), removed=st.integers(0, 3))
def test_load_model__any_damage_to_the_pickle__returns_or_explains(
    pristine: Path, folder: Path, position: float, junk: bytes, removed: int
) -> None:
    """Instructions of the pickle that are altered, missing or too many do not get through to a crash either."""

    def damage(content: bytes) -> bytes:
        place = int(position * len(content))
        return content[:place] + junk + content[place + removed :]

    shutil.copy(pristine / CHECKPOINT, folder / CHECKPOINT)
    edit_pickle(folder / CHECKPOINT, damage)
    returns_or_explains(folder)
