"""Checkpoints in PyTorch's file format, read without building what they ask for.

``torch.load`` with ``weights_only=True`` runs no code either, but reads every tensor, whatever its size and whether it
is needed; what is here is for safety and memory.

Such a file is a zip archive: one pickle with everything but the numbers, and one uncompressed record for each tensor.
A pickle is a program. Here it may make containers, texts and numbers, whose memory its own length bounds; whatever else
it names is a stand-in, which holds nothing and calls nothing. A tensor is only described until somebody who knows which
shape it must have reads it, so that what nobody needs (the optimizer's state is as large as the network) costs nothing,
and no tensor can be larger than its record.
"""

from __future__ import annotations

import gc
import io
import math
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from coarse2fine.errors import reason_of

MOST_DIRECTORY = 4 << 20
"""Bytes of an archive's table of records; a network of a thousand tensors needs a quarter of one megabyte."""
MOST_PICKLE = 64 << 20
"""Bytes of the pickle; a training log of a thousand epochs and a hundred classes needs some 8 MB."""
MOST_SPREAD = 4
"""How many numbers a tensor's record may hold for each of its own; a view with steps reads all of them."""
MOST_STEPS = 4_000_000
"""Instructions of the pickle; the log of a thousand epochs and a hundred classes needs 1.8 million. As many empty lists
take some seconds and 250 MB."""


class RefusedNameError(Exception):
    """A pickle names what is not on the list; its text is the name."""


class DamagedError(Exception):
    """A file is not what ``torch.save`` writes; its text says why."""


class UnusualError(DamagedError):
    """A file that PyTorch may be able to read is not read here; its text says why."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that is still in its file.

    Attributes:
        record: The archive's name for its numbers.
        dtype: Their type.
        offset: The first of them that belongs to the tensor.
        shape: Of the tensor.
        stride: Steps from number to number along each axis.
    """

    record: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Skipped:
    """Stands in for a thing whose value nothing here needs: NumPy's scalars in the training log, sparse tensors."""


@dataclass(frozen=True, slots=True)
class _Storage:
    record: str
    dtype: torch.dtype


def _skip(*_: object) -> Skipped:
    return Skipped()


def _ordered(*arguments: Any) -> dict[Any, Any]:
    """An ``OrderedDict`` as a plain one; older pickles give its items as pairs."""
    result: dict[Any, Any] = {}
    for key, value in arguments[0] if arguments else ():
        if not isinstance(key, str | int):
            raise DamagedError("a key is neither text nor number")
        result[key] = value
    return result


def _tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> StoredTensor | Skipped:
    """What ``torch._utils._rebuild_tensor_v2`` is told."""
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        return Skipped()
    counts: tuple[Any, ...] = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(type(count) is int and 0 <= count < 1 << 63 for count in counts):
        raise DamagedError("a tensor has no shape")
    return StoredTensor(storage.record, storage.dtype, counts[0], shape, stride)


def _parameter(tensor: object, *_: object) -> object:
    return tensor


_STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip
_OTHER_STORAGES = ("ComplexFloatStorage", "ComplexDoubleStorage", "QInt8Storage", "QUInt8Storage", "QInt32Storage")
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64")
_MADE: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}
"""Names of a pickle that mean something here."""
_SKIPPED = frozenset(
    {
        # Checkpoints written with NumPy 1 name the module numpy.core, with NumPy 2 numpy._core.
        ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
        ("_codecs", "encode"), ("collections", "Counter"), ("collections", "defaultdict"), ("builtins", "dict"),
        ("builtins", "set"), ("builtins", "complex"), ("__builtin__", "set"), ("builtins", "bytearray"),
        ("torch", "Size"), ("torch", "device"), ("torch", "Tensor"), ("torch.nn.parameter", "Parameter"),
        ("torch._tensor", "_rebuild_from_type_v2"), ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_qtensor"), ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"), ("torch._utils", "_rebuild_nested_tensor"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"), ("torch.serialization", "_get_layout"),
        *(("torch", name) for name in (*_OTHER_STORAGES, *_DTYPES)),
        *(("torch", name) for name in ("per_tensor_affine", "per_channel_affine", "strided", "sparse_coo")),
    }
)  # fmt: skip
"""Names that harmless checkpoints hold. Nothing is looked up or called, so a name more would do no harm."""


_Load = Callable[["_Reader"], None]


class _Reader(pickle._Unpickler):
    """An unpickler of the few instructions that ``torch.save`` writes.

    The one in Python, not that in C: there a number in the file decides how large a table is made.
    """

    dispatch: ClassVar[dict[int, Any]]
    _KEPT = (
        "PROTO STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 INT LONG LONG1 LONG4 FLOAT "
        "BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE STRING BINSTRING SHORT_BINSTRING BINBYTES "
        "SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT "
        "GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE DUP GLOBAL STACK_GLOBAL BINPERSID"
    )

    def __init__(self, data: bytes, prefix: str) -> None:
        self._stream = io.BytesIO(data)
        super().__init__(self._stream, encoding="utf-8")
        self._prefix = prefix

    def load(self) -> Any:
        """What the pickle describes, after a bounded number of instructions."""
        self.read, self.readline = self._stream.read, self._stream.readline
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        for _ in range(MOST_STEPS):
            code = self.read(1)
            if not code:
                raise DamagedError("it ends early")
            try:
                self.dispatch[code[0]](self)
            except pickle._Stop as stop:  # type: ignore[attr-defined]
                return stop.value
        raise UnusualError("its description has more parts than any network's")

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for here; nothing is imported."""
        if (module, name) in _MADE:
            return _MADE[module, name]
        if (module, name) in _SKIPPED:
            return _skip
        raise RefusedNameError(f"{module}.{name}"[:200])

    def persistent_load(self, pid: Any) -> Any:
        """A record: ("storage", type, key, device, count)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or not isinstance(pid[2], str):
            raise DamagedError("a record has no name")
        return _Storage(f"{self._prefix}data/{pid[2]}", pid[1]) if isinstance(pid[1], torch.dtype) else Skipped()

    def _call(self) -> None:
        """REDUCE, NEWOBJ and the like: calls a function of ``_MADE``, or none."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        known = function is _skip or any(function is made for made in (_ordered, _tensor, _parameter))
        if not known or not isinstance(arguments, tuple):
            raise DamagedError("it calls what is no function")
        self.stack[-1] = function(*arguments)

    def _frame(self) -> None:
        """FRAME: how many bytes to read at once, which are all here already."""
        self.read(8)

    def _build(self) -> None:
        """BUILD: attributes of an object, which nothing here needs."""
        self.stack.pop()

    def _set_items(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self._put(self.stack[-1], items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put(self.stack[-1], [key, value])

    def _make_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append({})
        self._put(self.stack[-1], items)

    @staticmethod
    def _put(target: object, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, tuple | Skipped):  # hashing nested tuples exhausts the stack
                continue
            if isinstance(target, dict):
                target[key] = value
            elif not isinstance(target, Skipped):
                raise DamagedError("items of what is no mapping")

    def _make_set(self) -> None:
        """EMPTY_SET, FROZENSET, ADDITEMS: whatever is in a set is of no use here."""
        self.append(Skipped())


def _instructions() -> dict[int, Any]:
    kept = {getattr(pickle, name)[0] for name in _Reader._KEPT.split()}
    table = {code: method for code, method in pickle._Unpickler.dispatch.items() if code in kept}
    changed: dict[bytes, _Load] = {
        pickle.REDUCE: _Reader._call, pickle.NEWOBJ: _Reader._call, pickle.BUILD: _Reader._build,
        pickle.SETITEM: _Reader._set_item, pickle.SETITEMS: _Reader._set_items, pickle.DICT: _Reader._make_dict,
        pickle.EMPTY_SET: _Reader._make_set, pickle.FRAME: _Reader._frame,
    }  # fmt: skip
    return table | {code[0]: method for code, method in changed.items()}


_Reader.dispatch = _instructions()


class _Bounded(io.BufferedReader):
    """A file of which nobody reads more than a table of records at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes."""
        if size is not None and size > MOST_DIRECTORY:
            raise UnusualError("its table of records is larger than any network's")
        return super().read(size)


class Archive:
    """A checkpoint file, of which the pickle has been read.

    Attributes:
        content: What it holds: dictionaries, lists, tuples, texts, numbers, ``StoredTensor`` and ``Skipped``.

    Raises:
        RefusedNameError: If it names what no checkpoint of nnU-Net holds.
        DamagedError: If it is not what ``torch.save`` writes.
        UnusualError: If it is compressed, of another byte order, or larger than any description of a network.
        OSError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        with _Bounded(path.open("rb", buffering=0)) as stream:
            try:
                with zipfile.ZipFile(stream) as archive:
                    self._records = {record.filename: record for record in archive.infolist()}
                    self.content = self._read_pickle(archive)
            except (RefusedNameError, DamagedError, MemoryError, OSError):
                raise
            except Exception as error:  # damaged bytes are still instructions, which fail in any way
                raise _damaged(error) from None

    def _read_pickle(self, archive: zipfile.ZipFile) -> Any:
        names = [name for name in self._records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise DamagedError("it is no archive of PyTorch's")
        prefix = names[0].removesuffix("data.pkl")
        order = f"{prefix}byteorder"
        if order in self._records and self._plain(archive, order, 0, 16) != sys.byteorder.encode():
            raise UnusualError("it was written on a machine with another byte order")
        data = self._plain(archive, names[0], 0, MOST_PICKLE + 1)
        if len(data) > MOST_PICKLE:
            raise UnusualError(f"its description has more than {MOST_PICKLE} bytes")
        collecting = gc.isenabled()
        gc.disable()  # of millions of new values there is nothing to collect, and looking takes as long as reading
        try:
            return _Reader(bytes(data), prefix).load()
        finally:
            if collecting:
                gc.enable()

    def _plain(self, archive: zipfile.ZipFile, name: str, start: int, length: int) -> bytearray:
        """Bytes of a record, which must be stored as it is; fewer where it ends."""
        record = self._records.get(name)
        if record is None:
            raise DamagedError(f"it lacks the record {name[:100]}")
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise UnusualError(f"its record {name[:100]} is compressed, which PyTorch's never are")
        data = bytearray()
        with archive.open(record) as stream:
            stream.seek(start)
            # In pieces, so that nobody gets memory for more than the file has; one piece more checks the checksum.
            while piece := stream.read(min(1 << 20, max(1, length - len(data)))):
                data += piece
                if len(data) > length:
                    return data[:length]
        return data

    def read(self, tensors: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
        """The numbers of some tensors by name; names of the same tensor get one in common.

        Raises:
            DamagedError: If a record has fewer numbers than a shape, or the file is smaller than all of them.
        """
        different = set(tensors.values())
        needed = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in different)
        if needed > self._size:  # several records may be the same bytes
            raise DamagedError(f"its weights have {needed} bytes, the file {self._size}")
        with _Bounded(self._path.open("rb", buffering=0)) as stream:
            try:
                with zipfile.ZipFile(stream) as archive:
                    read = {tensor: self._read_tensor(archive, tensor) for tensor in different}
                    return {name: read[tensor] for name, tensor in tensors.items()}
            except (DamagedError, MemoryError, OSError):
                raise
            except Exception as error:
                raise _damaged(error) from None

    def _read_tensor(self, archive: zipfile.ZipFile, tensor: StoredTensor) -> torch.Tensor:
        count, size = math.prod(tensor.shape), tensor.dtype.itemsize
        if not count:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        span = 1 + sum((edge - 1) * step for edge, step in zip(tensor.shape, tensor.stride, strict=True))
        held = self._records[tensor.record].file_size // size if tensor.record in self._records else 0
        if not count <= span <= min(MOST_SPREAD * count, held - tensor.offset):
            raise DamagedError(f"the file has {held} numbers for a tensor of shape {tensor.shape}")
        data = self._plain(archive, tensor.record, tensor.offset * size, span * size)
        return torch.frombuffer(data, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride).contiguous()


def _damaged(error: Exception) -> DamagedError:
    return DamagedError(reason_of(error))
