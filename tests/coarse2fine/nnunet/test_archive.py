"""Checkpoints as strangers may write them: read like PyTorch reads them, or refused at little cost."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers
from model_edits import CHECKPOINT, edit_checkpoint, edit_pickle

from coarse2fine.errors import ModelError
from coarse2fine.nnunet.archive import Archive, StoredTensor
from coarse2fine.nnunet.loading import load_model

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


def with_value(folder: Path, instructions: bytes) -> None:
    """Puts a value, given as pickle instructions, under a key of the checkpoint."""
    edit_pickle(
        folder / CHECKPOINT, lambda data: data[:-1] + b"X\x05\x00\x00\x00extra" + instructions + b"s" + data[-1:]
    )


@pytest.fixture
def folder(model_folder: Callable[..., Path]) -> Path:
    """A model folder that works."""
    return model_folder()


# --- what PyTorch writes ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=numbers.arrays(np.int8, numbers.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
    dtype=st.sampled_from(DTYPES),
    cut=st.booleans(),
    turned=st.booleans(),
    protocol=st.sampled_from([2, 3, 4, 5]),
    parameter=st.booleans(),
)
def test_archive__any_plain_tensor__is_read_as_pytorch_reads_it(
    tmp_path: Path, values: np.ndarray, dtype: torch.dtype, cut: bool, turned: bool, protocol: int, parameter: bool
) -> None:
    """Types, shapes, strides and offsets of tensors, and parameters, are PyTorch's own, in every pickle protocol."""
    tensor = torch.from_numpy(values).to(dtype)
    if turned and tensor.ndim:
        tensor = tensor.permute(*reversed(range(tensor.ndim)))
    if cut and tensor.ndim and tensor.shape[0]:
        tensor = tensor[1:]
    held = torch.nn.Parameter(tensor, requires_grad=False) if parameter else tensor
    torch.save({"a": held, "b": [1, None, "x", 2.5, True, (10**30,)]}, tmp_path / "x.pt", pickle_protocol=protocol)

    archive = Archive(tmp_path / "x.pt")
    assert archive.content["b"] == [1, None, "x", 2.5, True, (10**30,)]
    stored = archive.content["a"]
    assert isinstance(stored, StoredTensor)
    expected = torch.load(tmp_path / "x.pt", weights_only=False)["a"]
    result = archive.read({"a": stored})["a"]
    assert result.dtype == expected.dtype
    assert result.is_contiguous()
    assert torch.equal(result, expected)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_load_model__compiled_or_distributed_training__loads(folder: Path, prefix: str) -> None:
    """Names that torch.compile and distributed training put in front of every weight make no difference."""
    image = torch.rand(1, 1, 8, 16, 16)
    expected = load_model(folder).forward(image, mirroring=False)

    def wrap(content: dict[str, Any]) -> None:
        content["network_weights"] = {prefix + name: value for name, value in content["network_weights"].items()}

    edit_checkpoint(folder, wrap)
    assert torch.equal(load_model(folder).forward(image, mirroring=False), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_load_model__weights_of_another_type__are_what_loading_a_state_makes_of_them(
    folder: Path, dtype: torch.dtype
) -> None:
    """Half and double weights become single ones, as by PyTorch's ``load_state_dict``."""
    network = load_model(folder).networks[0]
    state = {name: value.to(dtype) for name, value in network.state_dict().items()}
    edit_checkpoint(folder, lambda content: content.update(network_weights=state))
    expected = load_model(folder).networks[0]
    expected.load_state_dict(state)
    for name, value in load_model(folder).networks[0].state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])


def test_load_model__names_of_one_weight_that_disagree__the_last_one_counts(folder: Path) -> None:
    """nnU-Net's states name most weights several times; which counts is what ``load_state_dict`` does."""
    first, last = "encoder.stages.0.0.convs.0.conv.bias", "decoder.encoder.stages.0.0.convs.0.all_modules.0.bias"
    state = {name: value.clone() for name, value in load_model(folder).networks[0].state_dict().items()}
    state[first], state[last] = torch.full_like(state[first], 1), torch.full_like(state[last], 2)
    edit_checkpoint(folder, lambda content: content.update(network_weights=state))
    reference = load_model(folder).networks[0]
    reference.load_state_dict(state)
    assert torch.equal(load_model(folder).networks[0].state_dict()[first], reference.state_dict()[first])


def test_archive__optimizer_state__is_not_read(folder: Path) -> None:
    """Numbers that inference does not need may be damaged."""
    edit_checkpoint(folder, lambda content: content.update(optimizer_state={"momentum": torch.full((1000,), 7.0)}))
    path = folder / CHECKPOINT
    path.write_bytes(path.read_bytes().replace(struct.pack("<4f", 7, 7, 7, 7), bytes(16)))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip()
    load_model(folder)


def test_load_model__copy_of_a_fold__is_no_fold(folder: Path) -> None:
    """Only numbered folders are folds, whatever else lies beside them."""
    (folder / "fold_all").rename(folder / "fold_0")
    shutil.copytree(folder / "fold_0", folder / "fold_0_backup")
    assert load_model(folder).folds == ("0",)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_load_model__weight_that_is_no_number__is_refused(folder: Path, value: float) -> None:
    """A training that diverged would give background everywhere; it is refused by the weight's name."""
    edit_checkpoint(folder, lambda content: content["network_weights"]["decoder.seg_layers.1.bias"].fill_(value))
    with pytest.raises(ModelError, match=r"decoder\.seg_layers\.1\.bias holds numbers that are not finite"):
        load_model(folder)


# --- what exhausts ---------------------------------------------------------------------------------------------------


def nested_lists(depth: int) -> bytes:
    """A list that holds twice a list that holds twice ...: 2 ** depth elements from a few bytes each."""
    return b"]q\xf0" + b"0](h\xf0h\xf0eq\xf0" * depth


def shared(depth: int) -> Any:
    value: Any = [1]
    for _ in range(depth):
        value = [value, value]
    return value


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def hex_text(times: int) -> bytes:
    """A text that is encoded as its own hexadecimal digits again and again, twice as long every time."""
    code = b"c_codecs\nencode\n" * times + b"C\x01a"
    return code + b"X\x03\x00\x00\x00hex\x86R" * times


def stride_zero(content: dict[str, Any]) -> None:
    for name, value in content["network_weights"].items():
        content["network_weights"][name] = torch.zeros([1] * value.ndim).expand(value.shape)


def giant(folder: Path) -> None:
    """Plans for a network of 13 TB, and weights of its shapes that lie in one number."""
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [10**6, 4, 4]
    (folder / "plans.json").write_text(json.dumps(plans))

    def expand(content: dict[str, Any]) -> None:
        one = torch.zeros(1)
        for name, value in content["network_weights"].items():
            shape = [10**6 if edge == 4 and axis == 0 and "stages.0.0" in name else edge
                     for axis, edge in enumerate(value.shape)]  # fmt: skip
            content["network_weights"][name] = one.expand(shape)

    edit_checkpoint(folder, expand)


def plans(key: str, value: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        document = json.loads((folder / "plans.json").read_text())
        section = document["configurations"]["3d_fullres"]
        *parents, last = key.split(".")
        for part in parents:
            section = section[part]
        section[last] = value
        (folder / "plans.json").write_text(json.dumps(document))

    return change


def axes(value: object) -> Callable[[Path], object]:
    return lambda folder: edit_checkpoint(
        folder, lambda content: content.update(inference_allowed_mirroring_axes=value)
    )


def text(file: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(content)


def many_records(folder: Path) -> None:
    """A table of a million records."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    table = entry * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(table), 0, 0)
    (folder / CHECKPOINT).write_bytes(table + end)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "shared lists as axes": axes(shared(40)),
    "deep lists as axes": axes([deep(300)]),
    "tensor as axes": axes(torch.zeros(3)),
    "tensor among axes": axes([torch.zeros(3)]),
    "true as axis": axes([True]),
    "endless number as axis": axes([10**5000]),
    "shared lists as configuration": lambda folder: edit_checkpoint(
        folder, lambda content: content["init_args"].update(configuration=shared(40))
    ),
    "long name as configuration": lambda folder: edit_checkpoint(
        folder, lambda content: content["init_args"].update(configuration="x" * 10**6)
    ),
    "stride 0": lambda folder: edit_checkpoint(folder, stride_zero),
    "giant network": giant,
    "deflated": lambda folder: edit_pickle(folder / CHECKPOINT, lambda data: data, zipfile.ZIP_DEFLATED),
    "pickle that expands": lambda folder: edit_pickle(
        folder / CHECKPOINT, lambda data: data[:-1] + b"N0" * (2 << 20) + data[-1:], zipfile.ZIP_DEFLATED
    ),
    "table of a million records": many_records,
    "million stages": plans("architecture.arch_kwargs.n_stages", 10**6),
    "ten thousand layers": plans("architecture.arch_kwargs.n_conv_per_stage", [100] * 100),
    "patch of petabytes": plans("patch_size", [9984, 9984, 9984]),
    "shared plans": plans("normalization_schemes", shared(14)),
    "endless number in plans": text("plans.json", '{"configurations": {"a": {"n_stages": ' + "9" * 4000 + "}}}"),
    "key twice": text("plans.json", '{"configurations": {}, "configurations": {}}'),
    "deep plans": text("plans.json", '{"configurations": {"3d_fullres": ' + "[" * 900 + "]" * 900 + "}}"),
    "large plans": text("plans.json", "[" + "[]," * 1_000_000 + "[]]"),
}
LONG: dict[str, Callable[[Path], object]] = {  # some seconds each
    "many instructions": lambda folder: edit_pickle(
        folder / CHECKPOINT, lambda data: data[:-1] + b"]" * 5_000_000 + data[-1:]
    ),
    "many values": lambda folder: with_value(folder, b"](" + b"I1\n" * 5_000_000 + b"e"),
    "large pickle": lambda folder: with_value(folder, b"B\x00\x00\x00\x05" + bytes(5 << 24)),
}
HARMLESS: dict[str, Callable[[Path], object]] = {  # nothing is built of these, so they may be there
    "shared lists": lambda folder: with_value(folder, nested_lists(40)),
    "deep lists": lambda folder: with_value(folder, b"](" * 100_000 + b"e" * 100_000),
    "deep tuple as key": lambda folder: with_value(folder, b"})" + b"\x85" * 1_000_000 + b"Ns"),
    "bytearray of gigabytes": lambda folder: with_value(folder, b"cbuiltins\nbytearray\n(I9999999999\ntR"),
    "distant memo": lambda folder: with_value(folder, b"Nr" + struct.pack("<I", 2**31)),
    "text doubled 40 times": lambda folder: with_value(folder, hex_text(40)),
    "attributes of a stand-in": lambda folder: with_value(folder, b"c_codecs\nencode\n}X\x01\x00\x00\x00aNsb"),
}

PROGRAM = """
import json, resource, sys, time
from pathlib import Path
from coarse2fine.errors import C2FError
from coarse2fine.nnunet.loading import load_model
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for name in sys.argv[1:]:
    before, start = peak(), time.process_time()
    try:
        load_model(Path(name))
        message = None
    except C2FError as error:
        message = str(error)
    print(json.dumps([Path(name).name, message, time.process_time() - start, peak() - before]), flush=True)
"""


@pytest.mark.alone
@pytest.mark.parametrize("cases", [HOSTILE | HARMLESS, LONG], ids=["all", "long"])
def test_load_model__files_that_exhaust__cost_seconds_and_megabytes(
    folder: Path, tmp_path: Path, cases: dict[str, Callable[[Path], object]]
) -> None:
    """Whatever small files ask for takes less than 5 s and 1 GB, and is refused in short, or did not matter."""
    folders = []
    for name, damage in cases.items():
        folders.append(str(shutil.copytree(folder, tmp_path / name)))
        damage(Path(folders[-1]))
    done = subprocess.run([sys.executable, "-c", PROGRAM, *folders], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    for name, (message, seconds, megabytes) in found.items():
        assert (message is None) == (name in HARMLESS), (name, message)
        assert seconds < 5, name
        assert megabytes < 1000, name
        assert message is None or len(message) < 1200, name
    assert len(found) == len(folders)


def of_another_byte_order(folder: Path) -> None:
    """As a machine with the other byte order would have written it; all weights have four bytes each."""
    path = folder / CHECKPOINT
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            if "/data/" in name:
                content = np.frombuffer(content, np.uint32).byteswap().tobytes()
            archive.writestr(name, b"big" if name.endswith("/byteorder") else content)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_another_byte_order, "byte order"),
        (lambda folder: edit_pickle(folder / CHECKPOINT, lambda data: data, zipfile.ZIP_DEFLATED), "is compressed"),
        (lambda folder: with_value(folder, b"](" + b"N" * (5 << 20) + b"e"), "more parts than any network's"),
    ],
    ids=["byte order", "compressed", "many parts"],
)
def test_load_model__what_only_pytorch_reads__is_refused_and_the_remedy_works(
    folder: Path, change: Callable[[Path], object], says: str
) -> None:
    """Copying the file again would change nothing; trusting its author does, and the weights are the same."""
    image = torch.rand(1, 1, 8, 16, 16)
    expected = load_model(folder).forward(image, mirroring=False)
    change(folder)
    with pytest.raises(ModelError, match=says) as caught:
        load_model(folder)
    assert "--trust-checkpoint" in caught.value.remedy
    assert torch.equal(load_model(folder, trust=True).forward(image, mirroring=False), expected)


def test_archive__pickle_that_ends_early__is_refused(folder: Path) -> None:
    """Instructions without an end are damage."""
    edit_pickle(folder / CHECKPOINT, lambda data: data[:-1])
    with pytest.raises(ModelError, match="is damaged"):
        load_model(folder)
    assert pickle.STOP == b"."
