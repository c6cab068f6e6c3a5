"""Borders: what they cover, and that nothing of them tells how an image was turned or cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from coarse2fine.errors import ConfigError
from coarse2fine.networks.vit import ViT, ViTShape
from coarse2fine.pretrain.borders import KINDS, Border, Kind, content
from coarse2fine.pretrain.jigsaw import Jigsaw
from coarse2fine.pretrain.objective import Views
from coarse2fine.pretrain.rotation import Rotation, turns_of

EDGE, IMAGES = 16, 900


def network() -> ViT:
    return ViT(ViTShape(1, (EDGE, EDGE), (4, 4), 8, 1, 1))


def with_border(what: str) -> torch.Tensor:
    """Noise that tells nothing, with something at the border that tells where an image's left or corner is."""
    generator = np.random.default_rng(3)
    images = generator.normal(3, 1, (IMAGES, 1, EDGE, EDGE)).astype(np.float32)
    for image in images:
        if what == "padding":
            image[..., : generator.integers(1, 4)] = 0
        elif what == "collimator":
            image[..., : generator.integers(1, 3), :] = -3
        else:
            image[..., :2, :2] = 9  # a letter
    return torch.from_numpy(images)


def turned(images: torch.Tensor, border: Border) -> tuple[Views, str, int]:
    rotation = Rotation(network(), (EDGE, EDGE), border)
    return rotation.views({"images": images}, np.random.default_rng(1)), "turn", len(rotation.turns)


def puzzled(images: torch.Tensor, border: Border) -> tuple[Views, str, int]:
    jigsaw = Jigsaw(network(), (EDGE, EDGE), border, orders=4, parts=(2, 2))
    return jigsaw.views({"images": images}, np.random.default_rng(1)), "order", 4


def accuracy(views: Views, answer: str) -> float:
    """Of a linear classifier of pixels, on images that it has not seen."""
    pixels, classes = views["image"].flatten(1).numpy(), views[answer].numpy()
    half = len(pixels) // 2
    model = LogisticRegression(C=0.01, max_iter=300).fit(pixels[:half], classes[:half])
    return float(model.score(pixels[half:], classes[half:]))


@pytest.mark.parametrize("task", [turned, puzzled])
@pytest.mark.parametrize(("what", "kind"), [("padding", "frame"), ("collimator", "disc"), ("letter", "disc")])
def test_views__something_at_the_border__tells_the_answer_unless_it_is_covered(
    task: Callable[[torch.Tensor, Border], tuple[Views, str, int]], what: str, kind: Kind
) -> None:
    """A linear classifier finds the turn or the order of noise with padding, a bar or a letter; covered, it guesses."""
    images = with_border(what)
    views, answer, classes = task(images, Border("none"))
    assert accuracy(views, answer) > 0.4
    views, answer, classes = task(images, Border(kind, 0.13))  # two of 16 pixels and a bit
    most = 1 / classes + 3.5 * np.sqrt(1 / classes * (1 - 1 / classes) / (IMAGES / 2))
    assert accuracy(views, answer) < most
    assert views["image"].abs().gt(0).any((1, 2, 3)).all()  # and there is something left to look at


@given(
    shape=st.lists(st.integers(2, 9), min_size=2, max_size=3),
    kind=st.sampled_from(KINDS),
    width=st.floats(0, 0.45),
)
def test_visible__any_turn__is_the_same(shape: list[int], kind: Kind, width: float) -> None:
    """Whatever the shape."""
    visible = Border(kind, width).visible(shape)
    for turn in turns_of(shape):
        assert torch.equal(turn(visible), visible)


def test_visible__kinds__cover_what_they_say() -> None:
    """A frame by hand; a disc has the area of one."""
    frame = Border("frame", 0.1).visible((20, 10))
    expected = np.zeros((20, 10), bool)
    expected[2:18, 1:9] = True
    assert np.array_equal(frame, expected)
    assert Border("disc", 0).visible((200, 100)).float().mean() == pytest.approx(np.pi / 4, abs=0.01)
    assert Border("disc", 0.1).visible((60, 60, 60)).float().mean() == pytest.approx(np.pi / 6 * 0.8**3, abs=0.01)
    assert Border("none", 0.1).visible((3, 4)).all()


def test_content__planes_that_are_constant__are_left_out_from_the_faces_only() -> None:
    """Of each image by itself, over all channels; a constant image has no border."""
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, 5, 6, 7)).astype(np.float32))
    images[0, :, :2], images[0, ..., 5:] = 0, -1  # the first planes are constant but for the last ones
    images[0, 1, 1, 3, 3] = 2  # so that one plane is not constant in one channel
    images[1, :, 2] = 0  # in the middle
    images[2] = 7
    expected = np.ones((3, 1, 5, 6, 7), bool)
    expected[0, :, :1], expected[0, ..., 5:] = False, False
    assert np.array_equal(content(images), expected)


def test_border__that_covers_everything__is_refused_and_the_remedy_works() -> None:
    """The remedy's share is taken."""
    with pytest.raises(ConfigError, match=r"a border of 0\.5 of the edge leaves no image") as raised:
        Border("disc", 0.5)
    assert Border("disc", float(raised.value.remedy.split()[-1].rstrip("."))).visible((8, 8)).any()
