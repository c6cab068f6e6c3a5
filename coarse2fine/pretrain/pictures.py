"""Pictures in memory, or on the disk where they are read from: all of one size, as their files' integers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from coarse2fine.errors import ImageError
from coarse2fine.io import atomic_write
from coarse2fine.pretrain.table import Row, Table, check_columns
from coarse2fine.system.terminal import plain, shown
from coarse2fine.system.timing import Ticks

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Floats = NDArray[np.float32]

_FORMATS = ("PNG", "JPEG", "TIFF")
_THREADS = 4  # that decode; more wait for the disk
_GREY = ("1", "L", "LA")
_DEEP = ("I", "I;16", "I;16B", "I;16L")
_REPAIR = "Save it again as PNG, JPEG or TIFF, or remove it."


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Pictures with their table.

    Attributes:
        pixels: Shape (n, channels, height, width), of 8 or 16 bits; perhaps on the disk.
        table: A row for each.
    """

    pixels: Pixels
    table: Table

    def __len__(self) -> int:
        return len(self.table)

    def take(self, indices: Sequence[int]) -> Pictures:
        """Some of them, in this order."""
        return Pictures(self.pixels[np.asarray(indices, int)], self.table.take(indices))


@dataclass(frozen=True, slots=True)
class Intensities:
    """How pixels become what networks see: ``(pixel - mean) / std`` of each channel.

    Attributes:
        mean, std: Of the images that were learned from.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, pixels: Pixels) -> Intensities:
        """Those of images (n, channels, height, width), one after the other."""
        sums = np.zeros((2, pixels.shape[1]))
        for image in pixels:
            values = image.astype(np.float64)
            sums += values.sum((1, 2)), np.square(values).sum((1, 2))
        mean, square = sums / (len(pixels) * prod(pixels.shape[2:]))
        std = np.sqrt(np.maximum(square - mean**2, 1e-8))
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def normalise(self, pixels: Pixels | Floats) -> Floats:
        """Pixels of shape (..., channels, height, width)."""
        mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return (pixels.astype(np.float32) - mean) / std


def load_pictures(
    files: Sequence[Path],
    size: Sequence[int],
    *,
    smooth: bool = True,
    cache: Path | None = None,
    progress: Ticks = lambda done, total: None,
) -> Pixels:
    """Read pictures and bring them to one size, whatever their own.

    Args:
        files: PNG, JPEG or TIFF of 8 or 16 bits; at least one.
        size: Height and width.
        smooth: Interpolate, or else take the nearest pixel, as masks need.
        cache: File in NumPy's format to keep them in, which is read if it is there; None: they stay in memory.
        progress: Told of each one.

    Returns:
        Shape (n, channels, *size). Grey pictures have one channel, even if their file has three that are equal.

    Raises:
        ImageError: If one cannot be read, or channels or bits differ.
    """
    if cache is not None and cache.exists():
        return np.asanyarray(np.load(cache, mmap_mode="r", allow_pickle=False))
    first = read_picture(files[0], size, smooth=smooth)
    shape = (len(files), *first.shape)
    if cache is None:
        pixels = np.empty(shape, first.dtype)
        _fill(pixels, files, smooth, progress)
        return pixels
    with atomic_write(cache, needed=first.nbytes * len(files)) as temporary:
        stored = np.lib.format.open_memmap(temporary, "w+", first.dtype, shape)
        _fill(stored, files, smooth, progress)
        stored.flush()
    return np.asanyarray(np.load(cache, mmap_mode="r", allow_pickle=False))


def _fill(pixels: Pixels, files: Sequence[Path], smooth: bool, progress: Ticks) -> None:
    def read(index: int) -> None:
        image = read_picture(files[index], pixels.shape[2:], smooth=smooth)
        for what, found, expected in (
            ("channel(s)", len(image), pixels.shape[1]),
            ("bits", 8 * image.itemsize, 8 * pixels.itemsize),
        ):
            if found != expected:
                raise ImageError(
                    f"{files[index]} has {found} {what}, {files[0]} has {expected}",
                    "Convert all pictures to the same kind, such as 8-bit grey.",
                )
        pixels[index] = image

    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")  # of metadata that nobody here reads; not in threads, which share filters
        try:
            for done, _ in enumerate(pool.map(read, range(len(files))), 1):
                progress(done, len(files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read_picture(path: Path, size: Sequence[int] | None = None, *, smooth: bool = True) -> Pixels:
    """One picture, upright, resized unless the size is None; shape (channels, height, width).

    Raises:
        ImageError: If it is damaged, too large, several in one, or of no kind that is known.
    """
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or inf):  # of which Pillow only warns
                raise Image.DecompressionBombError
            if (count := int(getattr(opened, "n_frames", 1))) > 1:
                raise ImageError(f"{path} holds {count} pictures", "Save each in a file of its own.")
            opened.load()
            return _pixels(_as_known(ImageOps.exif_transpose(opened), path), size, smooth)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(
            f"{path} has more than the {Image.MAX_IMAGE_PIXELS:,} pixels that a picture may have",
            "Save it smaller, or remove it.",
        ) from None
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist", "Check the path.") from None
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise ImageError(f"{path} is no picture that can be read: {plain(str(error))[:200]}", _REPAIR) from None


def _as_known(image: Image.Image, path: Path) -> Image.Image:
    """Grey of 8 or 16 bits, or colours."""
    if image.mode in ("P", "PA", "CMYK", "YCbCr", "RGBA", "RGBX", "LAB", "HSV"):
        return image.convert("RGB")
    if image.mode in _GREY:
        return image.convert("L")
    if image.mode in _DEEP:  # by way of NumPy, as Pillow converts them by cutting values off at 255
        values = np.asarray(image)
        if not 0 <= values.min() <= values.max() < 1 << 16:
            raise ImageError(
                f"{path} holds values from {values.min()} to {values.max()}", "Save it with 16 bits, from 0 to 65535."
            )
        return Image.fromarray(values.astype(np.uint16))
    if image.mode != "RGB":
        raise ImageError(f"{path} holds pixels of the kind {shown(image.mode)}", "Save it with 8 or 16 bits.")
    return image


def _pixels(image: Image.Image, size: Sequence[int] | None, smooth: bool) -> Pixels:
    """Shape (channels, *size)."""
    grey = np.asarray(image)
    if grey.ndim == 3 and (grey == grey[..., :1]).all():
        grey = grey[..., 0]
        image = Image.fromarray(grey)
    if size is None or tuple(size) == (image.height, image.width):
        pixels = grey
    else:
        how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        wide = image.convert("F") if image.mode == "I;16" else image  # Pillow resizes 16 bits coarsely
        pixels = np.asarray(wide.resize((size[1], size[0]), how))
        pixels = pixels.round().clip(0, 65535).astype(np.uint16) if image.mode == "I;16" else pixels
    return np.ascontiguousarray(np.moveaxis(np.atleast_3d(pixels), 2, 0))


def read_arrays(path: Path, patient: str = "patient") -> Pictures:
    """Pictures in NumPy's archive: ``images``, shape (n, height, width) or (n, height, width, channels), and columns.

    Args:
        path: The .npz file; every other array of length n is a column of the table.
        patient: Name of that of patients.

    Raises:
        ImageError: If it is damaged, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: dict[str, NDArray[Any]] = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist", "Check the path.") from None
    except Exception as error:  # a damaged archive fails in its own way in each layer
        raise ImageError(
            f"{path} is damaged or no archive of arrays: {plain(str(error))[:200]}", "Write it by numpy.savez."
        ) from None
    check_columns(path, arrays, ["images", patient])
    images = arrays.pop("images")
    if images.dtype not in (np.uint8, np.uint16) or images.ndim not in (3, 4) or 0 in images.shape:
        raise ImageError(
            f"{path}: images are {images.dtype} of shape {images.shape}",
            "They must be uint8 or uint16 of shape (n, height, width) or (n, height, width, channels).",
        )
    columns = {name: [str(one) for one in values] for name, values in arrays.items() if values.shape == (len(images),)}
    check_columns(path, columns, [patient])
    rows = [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]
    pixels = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
    table = Table(path, tuple(Row(str(at), path, row[patient], row) for at, row in enumerate(rows)))
    return Pictures(np.ascontiguousarray(pixels), table)
