"""What is known of devices: which there are, and what they do."""

from __future__ import annotations

import pytest
import torch

from coarse2fine.errors import ConfigError
from coarse2fine.system.device import mixes_precisions, peak_bytes_of_tensors, pick_device, shared_gpus


@pytest.mark.parametrize(
    ("name", "gpus", "apple", "found"),
    [
        ("auto", 0, False, "cpu"),
        ("auto", 2, True, "cuda"),
        ("auto", 0, True, "mps"),
        ("cpu", 2, True, "cpu"),
        ("cuda", 1, False, "cuda"),
        ("cuda:1", 2, False, "cuda:1"),
        ("cuda:1", 1, True, None),
        ("cuda", 0, False, None),
        ("mps", 0, True, "mps"),
        ("mps", 2, False, None),
    ],
)
def test_pick_device__any_machine__takes_what_is_there_and_refuses_the_rest(
    name: str, gpus: int, apple: bool, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name; what the message offers instead is taken on the same machine."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    if found is not None:
        assert pick_device(name) == torch.device(found)
        return
    with pytest.raises(ConfigError, match=f"device {name} is not available") as caught:
        pick_device(name)
    assert caught.value.remedy == "Use device: auto or cpu."
    for offered in ("auto", "cpu"):
        pick_device(offered)


@pytest.mark.parametrize("gpus", [0, 2])
def test_shared_gpus__any_machine__are_those_that_work(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """None where there is no driver, whatever is built in."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    assert shared_gpus() == gpus


def test_devices__each_kind__differ_where_nnunet_treats_them_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Precisions are mixed on CUDA alone, which alone counts what tensors have had."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    kinds = [torch.device(name) for name in ("cpu", "cuda:1", "mps")]
    assert [mixes_precisions(kind) for kind in kinds] == [False, True, False]
    assert [peak_bytes_of_tensors(kind) for kind in kinds] == [None, 123, None]
