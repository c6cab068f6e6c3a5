"""What tells trained models from each other: their weights."""

from __future__ import annotations

import hashlib
import json
from itertools import chain

import numpy as np
from torch import nn

from coarse2fine.nnunet.model import Model


def network_fingerprint(network: nn.Module) -> str:
    """SHA-256 over the weights (name, shape, bytes) of a network.

    nnU-Net lists most weights under several names; each counts once.
    """
    digest = hashlib.sha256()
    named = dict(chain(network.named_parameters(), network.named_buffers()))
    for name in sorted(named):
        values = np.ascontiguousarray(named[name].detach().cpu().numpy())
        digest.update(f"{name} {values.shape} {values.dtype}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()


def model_fingerprint(model: Model) -> str:
    """SHA-256 over the weights of all folds of a model, and over its plans, which say what becomes of its input."""
    digest = hashlib.sha256(f"{model.configuration} {json.dumps(model.plans, sort_keys=True)}".encode())
    for network in model.networks:
        digest.update(network_fingerprint(network).encode())
    return digest.hexdigest()
