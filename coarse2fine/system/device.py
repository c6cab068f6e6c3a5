"""Where arrays are: the only module that knows how the CPU, CUDA and Apple's GPUs differ.

Others are given a device, upload what they have, and compute with tensors. What they want to look at comes back by
``to_host`` and in no other way: on a GPU that is where a program waits, so it is done for many things at once.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.errors import ConfigError
from coarse2fine.system.memory import available_bytes

CPU = torch.device("cpu")
SHARE = 0.5
"""The part of a device's free memory that one thing may take."""
SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""Types with the same bits, for operations that PyTorch does not have without sign."""
BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""Instructions by which processors compute in bfloat16, as PyTorch names them."""
MOST_AT_ONCE = 8
"""Inputs of a network that more of are not faster than one after the other, if each is as large as a patch."""
MOST_PINNED = 1 << 28
"""Bytes of what is copied into pinned memory on its way; larger things are uploaded from where they are."""


def pick_device(name: str) -> torch.device:
    """The device that the configuration asks for; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: If it does not exist on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    missing = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ConfigError(f"device {name} is not available on this machine", "Use device: auto or cpu.")
    return device


def shared_gpus() -> int:
    """How many GPUs several processes can have one each of."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def is_host(device: torch.device) -> bool:
    """Whether tensors of a device lie in the host's memory and the processor computes with them: on the CPU."""
    return device.type == "cpu"


def upload(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array as a tensor.

    Args:
        array: In the host's memory, in any byte order.
        device: Where to. On the CPU the tensor shares the array's memory, if PyTorch can read that.

    Returns:
        The same values. CUDA receives them while the program goes on.
    """
    backwards = tuple(axis for axis, step in enumerate(array.strides) if step < 0)  # which PyTorch does not know
    forwards = readable(np.flip(array, backwards), device)
    tensor = torch.from_numpy(forwards)
    if device.type == "cuda" and tensor.nbytes <= MOST_PINNED:
        tensor = tensor.pin_memory()
    tensor = tensor.to(device, non_blocking=True)
    return flipped(tensor, backwards)


def readable(array: NDArray[Any], device: torch.device) -> NDArray[Any]:
    """An array that PyTorch can make a tensor of for a device: the same one, or a copy.

    Apple's GPUs have neither doubles nor all unsigned types: there such voxels are in single precision from here on.
    """
    if device.type == "mps" and array.dtype.kind in "fu" and array.dtype.itemsize > 1:
        return array.astype(np.float32)
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.writeable else array.copy()  # PyTorch has no tensors that are read only


def flipped(tensor: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """A tensor with some axes reversed; a copy, unless there are none."""
    if not axes:
        return tensor
    if tensor.dtype not in SIGNED:
        return tensor.flip(list(axes))
    return tensor.view(SIGNED[tensor.dtype]).flip(list(axes)).view(tensor.dtype)


def zeros_for(shape: Sequence[int], dtype: type[np.generic], device: torch.device) -> torch.Tensor:
    """Zeros of a type of NumPy's, for a result that becomes an array: on the device if this has room, else on the CPU.

    There memory is taken page by page, as it is written to.
    """
    device = room_for(prod(shape) * np.dtype(dtype).itemsize, device)
    array = np.zeros(shape if device == CPU else (), dtype)
    tensor = torch.from_numpy(array)
    return tensor if device == CPU else torch.zeros(tuple(shape), dtype=tensor.dtype, device=device)


def accumulator(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Float32 zeros that live long; on the CPU outside of the heap.

    Network passes free much and take it again, while these stay. On the heap they would lie in between, and what was
    free around them would be too small for the next feature map; see ``coarse2fine.system.memory``.
    """
    if not is_host(device):
        return torch.zeros(tuple(shape), device=device)
    return torch.frombuffer(mmap.mmap(-1, 4 * prod(shape)), dtype=torch.float32).view(*shape)


def to_host(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor as an array; of one on the CPU it is the same memory."""
    return tensor.cpu().numpy()


def has_bfloat16(device: torch.device) -> bool:
    """Whether it is a processor that computes in bfloat16; others imitate it, which is slower than single precision."""
    if not is_host(device):
        return False
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in BFLOAT16)


def mixes_precisions(device: torch.device) -> bool:
    """Whether networks compute in half precision where that is enough, as nnU-Net's do: on CUDA."""
    return device.type == "cuda"


def autocast(device: torch.device, precision: torch.dtype = torch.float32) -> AbstractContextManager[object]:
    """Inside, networks do as ``mixes_precisions`` says; on the CPU they compute in ``precision``."""
    if is_host(device):
        return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)
    return torch.autocast(device.type) if mixes_precisions(device) else nullcontext()


def random_numbers_kept(device: torch.device) -> AbstractContextManager[object]:
    """Leaves PyTorch's random numbers on the CPU and on a device as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def peak_bytes_of_tensors(device: torch.device) -> int | None:
    """Most memory that tensors on a GPU have had at once; None of devices that do not count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def free_bytes(device: torch.device) -> int:
    """Memory that tensors on a device can have without swapping."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return available_bytes()


def waiting_bytes(device: torch.device) -> int:
    """How much may wait on a device so that it is looked at together; nothing on the CPU, where looking is free."""
    return 0 if is_host(device) else int(SHARE / 2 * free_bytes(device))


def most_at_once(size: int, device: torch.device) -> int:
    """How many inputs go through a network at once, of which one has feature maps of so many bytes in all."""
    if is_host(device):  # one keeps all cores busy, and its feature maps are still in the cache
        return 1
    return max(1, min(MOST_AT_ONCE, int(SHARE * free_bytes(device) / max(size, 1))))


def room_for(size: int, device: torch.device) -> torch.device:
    """The device if its free memory has room for so many bytes, else the CPU."""
    return device if is_host(device) or size <= SHARE * free_bytes(device) else CPU


def outgrown(device: torch.device, used: Collection[torch.device], what: str) -> tuple[str, ...]:
    """What users should know if parts of something are on the CPU because ``room_for`` found no room on a device.

    Args:
        device: Where all of it should be.
        used: Where its parts are.
        what: Its name.
    """
    if is_host(device) or not any(map(is_host, used)):
        return ()
    return (f"{device} has too little free memory for the {what}: parts of it stayed on the host, which is slower",)
