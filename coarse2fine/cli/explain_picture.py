"""What ``c2f-explain`` does with a picture: a map of the picture's size."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from coarse2fine.errors import ConfigError, OutputError
from coarse2fine.explain.overlay import draw_flat_map
from coarse2fine.explain.volumes import Explanation, Subject, explain_view
from coarse2fine.io import atomic_write, check_writable
from coarse2fine.page.window import pick_window
from coarse2fine.pretrain.crops import view_picture
from coarse2fine.pretrain.pictures import read_picture
from coarse2fine.system.terminal import plain

_DEEPEST = 65535  # of a map's grey values


def explain_picture(options: argparse.Namespace, subject: Subject, console: Console) -> None:
    """Explain a picture by a 2D model of nnU-Net's, which sees it in its own size.

    Raises:
        C2FError: If it cannot be done; before the network runs, if it is because of options.
    """
    check_picture(options)
    view = view_picture(Path(options.input), subject.model)
    write_picture(options, explain_view(subject, view, method=options.method), console)


def check_picture(options: argparse.Namespace) -> None:
    """Find out whether all that will be written can be, and whether options have a meaning.

    Raises:
        ConfigError: If one has none.
        OutputError: If something cannot be written, or would replace the input or another result.
    """
    if options.mask:
        raise ConfigError("--mask is for volumes", "Leave it out: what the network finds in the picture is explained.")
    taken = {Path(options.input).resolve()}
    for file in (options.output, *([options.png] if options.png else [])):
        if file.resolve() in taken:
            raise OutputError(f"{file} is the input or another result of this run", "Choose another name.")
        taken.add(file.resolve())
        check_writable(file, options.overwrite, (".png",))


def write_picture(options: argparse.Namespace, found: Explanation, console: Console) -> None:
    """Write the map of a picture, shape (1, rows, columns), and what is drawn of it, and say so.

    Raises:
        OutputError: If it cannot be written.
    """
    heat, explained = found.values[0], found.explained[0]
    with atomic_write(options.output) as path:
        Image.fromarray((heat * _DEEPEST + 0.5).astype(np.uint16)).save(path, format="png")
    console.print(plain(f"{options.label}: {options.method} at layer {found.layer}"), soft_wrap=True)
    console.print(plain(f"written: {options.output}"), soft_wrap=True)
    if options.png:
        image = read_picture(Path(options.input)).mean(0)
        picture = draw_flat_map(pick_window(image, image, ct=False).grey(image), heat, explained, options.label)
        with atomic_write(options.png) as path:
            path.write_bytes(picture)
        console.print(plain(f"written: {options.png}"), soft_wrap=True)
    if found.dense and not explained.any():
        console.print("it is found nowhere, and the map is 0 everywhere", style="yellow", soft_wrap=True)
    elif not heat.any():
        console.print(plain(f"nothing in layer {found.layer} speaks for it; the map is 0 everywhere"), style="yellow")
