"""Pictures: read, resized, normalised, cropped."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy.stats import kstest
from skimage.transform import resize as skimage_resize

from coarse2fine.errors import ImageError
from coarse2fine.pretrain.picture_crops import PictureCrops, random_box, resize
from coarse2fine.pretrain.pictures import Intensities, load_pictures, read_arrays, read_picture
from coarse2fine.pretrain.table import find_pictures


def smooth(shape: tuple[int, int], top: int, dtype: type = np.uint8) -> np.ndarray:
    y, x = np.meshgrid(*[np.linspace(0, 3, size) for size in shape], indexing="ij")
    return (top * (0.5 + 0.25 * np.sin(2 * y) + 0.25 * np.cos(x))).astype(dtype)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_read_picture__grey_of_8_or_16_bits__as_it_was_written(tmp_path: Path, name: str, dtype: type) -> None:
    """One channel, every pixel equal."""
    pixels = smooth((20, 30), 255 if dtype is np.uint8 else 60_000, dtype)
    read = read_picture(save(tmp_path / name, pixels))
    assert read.dtype == dtype
    assert np.array_equal(read, pixels[None])


def test_read_picture__big_endian_16_bits__the_same_values(tmp_path: Path) -> None:
    """As scanners write TIFF, by another library."""
    pixels = smooth((20, 30), 60_000, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, byteorder=">", photometric="minisblack")
    read = read_picture(tmp_path / "a.tif")
    assert np.array_equal(read, pixels[None])
    assert read_picture(tmp_path / "a.tif", (10, 15)).dtype == np.uint16


def test_read_picture__colours__three_channels_unless_they_are_equal(tmp_path: Path) -> None:
    """Palettes and alpha, too; JPEG within what it loses."""
    grey = smooth((16, 24), 255)
    colour = np.stack([grey, 255 - grey, grey // 2], -1)
    assert np.array_equal(read_picture(save(tmp_path / "c.png", colour)), np.moveaxis(colour, 2, 0))
    assert np.array_equal(read_picture(save(tmp_path / "g.png", np.stack([grey] * 3, -1))), grey[None])
    alpha = np.dstack([colour, np.full_like(grey, 255)])
    assert np.array_equal(read_picture(save(tmp_path / "a.png", alpha)), np.moveaxis(colour, 2, 0))
    assert np.abs(read_picture(save(tmp_path / "g.jpg", grey, quality=95)).astype(int) - grey).max() < 8
    Image.fromarray(grey).convert("P").save(tmp_path / "p.png")
    assert np.array_equal(read_picture(tmp_path / "p.png"), grey[None])


def test_read_picture__turned_by_its_metadata__is_upright(tmp_path: Path) -> None:
    """As every viewer shows it."""
    pixels, exif = smooth((16, 24), 255), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    assert np.array_equal(read_picture(save(tmp_path / "a.png", pixels, exif=exif))[0], np.rot90(pixels, -1))


@pytest.mark.parametrize(("top", "dtype"), [(255, np.uint8), (60_000, np.uint16)])
def test_read_picture__another_size__looks_the_same(tmp_path: Path, top: int, dtype: type) -> None:
    """Compared with scikit-image's, within 2 % of the range."""
    pixels = smooth((60, 80), top, dtype)
    read = read_picture(save(tmp_path / "a.png", pixels), (30, 20))[0]
    wanted = skimage_resize(pixels.astype(float), (30, 20), anti_aliasing=True)
    assert read.dtype == dtype
    assert np.abs(read - wanted).max() < 0.02 * top


def test_read_picture__mask__keeps_its_values_when_it_is_resized(tmp_path: Path) -> None:
    """Nothing between them appears."""
    mask = np.zeros((31, 31), np.uint8)
    mask[5:20, 9:] = 255
    read = read_picture(save(tmp_path / "m.png", mask), (16, 16), smooth=False)
    assert set(np.unique(read)) == {0, 255}


def test_load_pictures__mixed_sizes__one_array_in_their_order(tmp_path: Path) -> None:
    """The same in memory and on the disk, where it is not made twice."""
    for number, shape in enumerate([(20, 30), (40, 40), (16, 8)]):
        save(tmp_path / "in" / f"{number}.png", np.full(shape, 10 * number, np.uint8))
    files, told = find_pictures(tmp_path / "in").files, []
    here = load_pictures(files, (12, 16), progress=lambda done, total: told.append((done, total)))
    assert here.shape == (3, 1, 12, 16)
    assert [int(image.mean()) for image in here] == [0, 10, 20]
    assert told == [(1, 3), (2, 3), (3, 3)]
    there = load_pictures(files, (12, 16), cache=tmp_path / "c.npy")
    assert np.array_equal(there, here)
    files[0].unlink()
    assert np.array_equal(load_pictures(files, (12, 16), cache=tmp_path / "c.npy"), here)


def test_load_pictures__mixed_kinds__the_first_that_differs_is_named(tmp_path: Path) -> None:
    """Channels or bits; converted as the message says they are taken."""
    grey = smooth((8, 8), 255)
    first = save(tmp_path / "a.png", grey)
    colour, deep = np.stack([grey, grey // 2, grey], -1), smooth((8, 8), 60_000, np.uint16)
    for pixels, says in ((colour, r"b\.png has 3 channel\(s\), .*a\.png has 1"), (deep, "b.png has 16 bits, .* has 8")):
        with pytest.raises(ImageError, match=says) as raised:
            load_pictures([first, save(tmp_path / "b.png", pixels)], (8, 8))
        assert "8-bit grey" in raised.value.remedy
    with Image.open(tmp_path / "b.png") as image:
        Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).save(tmp_path / "b.png")
    assert load_pictures([first, tmp_path / "b.png"], (8, 8)).shape == (2, 1, 8, 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_read_picture__what_cannot_be_read__one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off, no picture, several in one, too many pixels, floating point; none of it is a traceback."""
    whole = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(smooth((8, 8), 255)).save(tmp_path / "gif.png", format="GIF")  # not decoded, whatever it is called
    pages = [Image.fromarray(smooth((8, 8), 255))] * 2
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "high.tif")
    for name, says in (
        ("cut.png", "cut.png is no picture that can be read"),
        ("text.png", "is no picture that can be read"),
        ("gif.png", "is no picture that can be read"),
        ("none.png", "does not exist"),
        ("pages.tif", "holds 2 pictures"),
        ("high.tif", "holds values from 70000 to 70000"),
        ("float.tif", "holds pixels of the kind 'F'"),
    ):
        with pytest.raises(ImageError, match=says):
            read_picture(tmp_path / name)
    for most in (3000, 1000):  # of twice as many pixels Pillow warns, beyond that it refuses them
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(ImageError, match=f"more than the {most:,} pixels"):
            read_picture(tmp_path / "a.png")
    small = save(tmp_path / "small.png", smooth((30, 30), 255))
    assert read_picture(small).shape == (1, 30, 30)


def test_read_arrays__archive__images_with_their_columns(tmp_path: Path) -> None:
    """Grey or in colours; what has another length is no column."""
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 6), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, patient=np.array(list("aabbc")), sick=np.arange(5), more=np.zeros(2))
    pictures = read_arrays(tmp_path / "a.npz")
    assert np.array_equal(pictures.pixels, images[:, None])
    assert pictures.table.patients == list("aabbc")
    assert pictures.table.column("sick") == list("01234")
    assert "more" not in pictures.table.rows[0].columns
    some = pictures.take([4, 1])
    assert np.array_equal(some.pixels[:, 0], images[[4, 1]])
    assert some.table.patients == ["c", "a"]
    np.savez(tmp_path / "c.npz", images=np.stack([images] * 3, -1), patient=np.arange(5))
    assert read_arrays(tmp_path / "c.npz").pixels.shape == (5, 3, 8, 6)


def test_read_arrays__something_else__one_line(tmp_path: Path) -> None:
    """Objects, which would be code, are not read."""
    images = np.zeros((2, 4, 4), np.uint8)
    for arrays, says in (
        ({"patient": np.arange(2)}, "has no column 'images'"),
        ({"images": images}, "has no column 'patient'"),
        ({"images": images, "patient": np.arange(3)}, "has no column 'patient'"),
        ({"images": images.astype(float), "patient": np.arange(2)}, r"images are float64 of shape \(2, 4, 4\)"),
        ({"images": images[0], "patient": np.arange(4)}, r"images are uint8 of shape \(4, 4\)"),
        ({"images": images, "patient": np.array([{}, {}], object)}, "is damaged or no archive"),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(ImageError, match=says):
            read_arrays(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(ImageError, match="is damaged or no archive"):
        read_arrays(tmp_path / "a.npz")
    with pytest.raises(ImageError, match="does not exist"):
        read_arrays(tmp_path / "none.npz")


def test_intensities__of_pictures__their_mean_is_0_and_their_deviation_1() -> None:
    """Of each channel by itself, against NumPy; a constant channel stays finite."""
    pixels = np.random.default_rng(0).integers(0, 60_000, (7, 3, 9, 5)).astype(np.uint16)
    pixels[:, 2] = 40_000
    intensities = Intensities.of(pixels)
    assert intensities.mean == pytest.approx(pixels.mean((0, 2, 3)))
    assert intensities.std[:2] == pytest.approx(pixels.std((0, 2, 3))[:2])
    normal = intensities.normalise(pixels)
    assert normal.dtype == np.float32
    assert np.allclose(normal.mean((0, 2, 3)), 0, atol=1e-4)
    assert np.allclose(normal[:, :2].std((0, 2, 3)), 1, atol=1e-4)


def test_random_box__many_draws__cover_areas_uniformly_and_stay_inside() -> None:
    """Shares of the area are uniform where every shape fits, up to the rounding of edges."""
    generator, shape = np.random.default_rng(0), (300, 300)
    boxes = [random_box(shape, generator, (0.1, 0.4)) for _ in range(800)]
    edges = np.array([[one.stop - one.start for one in box] for box in boxes])
    assert all(0 <= one.start < one.stop <= 300 for box in boxes for one in box)
    assert kstest((edges.prod(1) / 300**2 - 0.1) / 0.3, "uniform").pvalue > 0.01
    stretch = np.log(edges[:, 1] / edges[:, 0]) / np.log(4 / 3)
    assert kstest((stretch + 1) / 2, "uniform").pvalue > 0.01
    whole = random_box((300, 20), generator, (1.0, 1.0))
    assert whole == (slice(0, 300), slice(0, 20))


def test_random_box__centre_weights__centres_lie_closer_and_uniform_in_the_limit() -> None:
    """Chi-square of the halves nearer to and farther from the middle."""
    generator, shape = np.random.default_rng(1), (101, 101)

    def tops(sigma: float) -> np.ndarray:
        """Where boxes of half an edge may begin, from 0 to 1."""
        boxes = [random_box(shape, generator, (0.25, 0.25), sigma) for _ in range(600)]
        return np.array([rows.start / (101 - rows.stop + rows.start) for rows, _ in boxes])

    assert kstest(tops(inf), "uniform").pvalue > 0.01
    assert (np.abs(tops(0.2) - 0.5) < 0.25).mean() > 0.6


def test_resize__another_shape__as_pillow_does() -> None:
    """Linear and without aliasing."""
    image = np.random.default_rng(0).normal(size=(1, 40, 30)).astype(np.float32)
    wanted = np.asarray(Image.fromarray(image[0]).resize((12, 16), Image.Resampling.BILINEAR))
    assert np.allclose(resize(image, (16, 12))[0].numpy(), wanted, atol=1e-5)


def test_draw__crops__are_normalised_parts_of_the_pictures_that_they_name() -> None:
    """Seeded, flipped half of the time; crops of everything are the pictures themselves."""
    pixels = np.random.default_rng(0).integers(0, 255, (4, 1, 16, 16)).astype(np.uint8)
    intensities = Intensities.of(pixels)
    square = PictureCrops(pixels, intensities, (8, 8))
    first, second = (square.draw(6, np.random.default_rng(3)) for _ in range(2))
    assert first["images"].shape == (6, 1, 8, 8)
    assert torch.equal(first["images"], second["images"])
    normal = intensities.normalise(pixels)
    whole = PictureCrops(pixels, intensities, area=(1.0, 1.0), flip=True)
    batch, flipped = whole.draw(60, np.random.default_rng(0)), 0
    for image, index in zip(batch["images"].numpy(), batch["index"].tolist(), strict=True):
        if not np.allclose(image, normal[index]):
            flipped += 1
            assert np.allclose(image, normal[index][..., ::-1])
    assert 15 < flipped < 45
