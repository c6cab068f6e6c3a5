"""A device that every machine has and that is no part of the host: its tensors meet no others unless they are copied.

Tensors on it hold their values in one of the CPU's. Whatever is computed with them is, but not together with tensors of
the CPU, which fails as it would on a GPU. What makes a program wait for a GPU is counted: copies to the host, and
operations whose result's shape or value the host must know.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from coarse2fine.nnunet.model import Model

THERE = torch.device("meta")
CPU = torch.device("cpu")
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}
"""Operations for which a program waits until a device has computed everything before them."""


class There(torch.Tensor):
    """A tensor on the device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        options = {"dtype": held.dtype, "device": THERE}
        with torch.inference_mode(mode=False):  # PyTorch makes no views of others than its own inference tensors
            result: Self = torch.Tensor._make_wrapper_subclass(
                cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), **options
            )
        result.held = held
        return result

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Only inside of ``OtherDevice``."""
        raise AssertionError(f"{func} with a tensor of a device that nobody counts on")


class OtherDevice(TorchDispatchMode):
    """Inside, ``THERE`` is a device.

    Attributes:
        waits: What a program waited for, by the name of the operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute on what tensors hold."""
        name, options = func.overloadpacket.__name__, dict(kwargs or {})
        leaves = [leaf for leaf in tree_flatten((args, options))[0] if isinstance(leaf, torch.Tensor)]
        there = [leaf for leaf in leaves if isinstance(leaf, There)]
        asked = options.get("device")
        if asked is not None:
            options["device"] = CPU
        moves = name in ("_to_copy", "copy_", "_copy_from")
        is_there = asked == THERE if asked is not None else isinstance(args[0], There) if moves else bool(there)
        strangers = [leaf for leaf in leaves if not isinstance(leaf, There) and leaf.ndim]
        if there and strangers and not moves:
            raise AssertionError(f"{name}: a tensor of the host of shape {tuple(strangers[0].shape)} meets the device")
        masked = name in ("index", "index_put_", "index_put") and any(leaf.dtype == torch.bool for leaf in leaves[1:])
        if there and (name in WAITING or masked or (moves and not is_there)):
            self.waits[name] += 1
        result = func(*tree_map(_held, args), **tree_map(_held, options))
        if func._schema.is_mutable:
            return args[0]
        return tree_map(_wrapped, result) if is_there else result


def _wrapped(value: Any) -> Any:
    return There(value) if isinstance(value, torch.Tensor) else value


def _held(value: Any) -> Any:
    return value.held if isinstance(value, There) else value


def moved(model: Model) -> Model:
    """A copy of a model on the device; only inside of ``OtherDevice``."""
    networks = copy.deepcopy(model.networks)
    for layer in (layer for network in networks for layer in network.modules()):
        for name, weights in layer.named_parameters(recurse=False):
            setattr(layer, name, nn.Parameter(There(weights.data), requires_grad=False))
    return dataclasses.replace(model, device=THERE, networks=networks)
