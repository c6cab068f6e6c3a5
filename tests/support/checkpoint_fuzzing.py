"""Damaged checkpoints in model folders, and what our loader makes of them."""

from __future__ import annotations

import random
import shutil
import zipfile
from pathlib import Path

from fuzzing import damaged
from model_edits import CHECKPOINT, edit_pickle

from coarse2fine.nnunet.loading import load_model

_INDEX = 3000  # bytes at the end of an archive, in which its list of parts begins


def make(seed: int, folder: Path, pristine: Path) -> Path:
    """A copy of a model folder whose checkpoint is damaged: its pickle as a rule, else the archive around it.

    Args:
        seed: Names the damage.
        folder: Where the copy is made.
        pristine: A model folder that works.
    """
    rng = random.Random(seed)
    copy: Path = shutil.copytree(pristine, folder / str(seed))
    path = copy / CHECKPOINT
    if seed % 4:
        packing = zipfile.ZIP_DEFLATED if seed % 4 == 1 else zipfile.ZIP_STORED
        edit_pickle(path, lambda content: damaged(content, rng, head=len(content)), packing)
        return copy
    content = path.read_bytes()
    backwards = seed % 8 != 0  # the list of an archive's parts is at its end
    turned = damaged(content[::-1], rng, head=_INDEX)[::-1] if backwards else damaged(content, rng, head=len(content))
    path.write_bytes(turned)
    return copy


def ours(folder: Path) -> str:
    """Loads the model."""
    return load_model(folder).folder.name
