"""Where results take shape, and how they appear at their place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from large_volumes import write_image

from canvas import Box
from coarse2fine.errors import ConfigError, OutputError
from coarse2fine.io import Grid, LabelSpec, create_labels, open_labels
from coarse2fine.large import output as output_module
from coarse2fine.large.execution.work import WorkFolder
from coarse2fine.large.output import Output, plan_output, publish
from coarse2fine.large.source import Source

GRID = Grid((4, 8, 8), (2.0, 1.0, 1.0))


def plan(where: str | Path, tmp_path: Path, **changes: Any) -> Output:
    options = {"objects": False, "overwrite": False, "inputs": str(tmp_path / "in.zarr"), "work": tmp_path / "work"}
    return plan_output(str(where), **(options | changes))


@pytest.mark.parametrize(
    ("where", "format", "objects"),
    [
        ("{}/out.zarr", "zarr", False),
        ("{}/out.ome.zarr/", "zarr", False),
        ("precomputed://{}/out", "precomputed", False),
        ("{}/out.hdf", "cremi", True),
        ("{}/out.h5", "cremi", True),
        ("s3://bucket/out.zarr", "zarr", False),
        ("precomputed://gs://bucket/out", "precomputed", False),
    ],
)
def test_plan_output__format_by_the_name(where: str, format: str, objects: bool, tmp_path: Path) -> None:
    """HDF5 always holds objects; a URL is not on this machine's disk."""
    output = plan(where.format(tmp_path), tmp_path)
    assert (output.format, output.objects, output.name) == (format, objects, "out")
    assert (output.path is None) == ("bucket" in where)


def test_plan_output__input_behind_a_url__does_not_lie_in_the_output(tmp_path: Path) -> None:
    """Only what is on this machine's disk can."""
    assert plan(tmp_path / "out.zarr", tmp_path, inputs="https://example.org/out.zarr").path == tmp_path / "out.zarr"


def test_plan_output__folders_that_are_not_there__are_made(tmp_path: Path) -> None:
    """Those of the result and of the work folder, which itself is made later."""
    work = tmp_path / "c" / "d" / "work"
    assert plan(tmp_path / "a" / "b" / "out.zarr", tmp_path, work=work).path == tmp_path / "a" / "b" / "out.zarr"
    assert (tmp_path / "a" / "b").is_dir()
    assert work.parent.is_dir()
    assert not work.exists()


@pytest.mark.parametrize("name", ["out.nii.gz", "out", "s3://bucket/out.hdf"])
def test_plan_output__name_without_format__is_refused(name: str, tmp_path: Path) -> None:
    """Before a long run, with the names that would do."""
    with pytest.raises(ConfigError) as caught:
        plan(name if "://" in name else tmp_path / name, tmp_path)
    assert (
        caught.value.remedy == "Name a folder or URL ending in .zarr, a file ending in .hdf, or precomputed://FOLDER."
    )
    for right in (tmp_path / "a.zarr", "s3://bucket/a.zarr", tmp_path / "a.hdf", f"precomputed://{tmp_path}/a"):
        plan(right, tmp_path)


@pytest.mark.parametrize("inputs", ["{}/a/in.zarr", "precomputed://{}/a/in.zarr", "file://{}/a/in.zarr"])
@pytest.mark.parametrize("where", ["a/in.zarr", "a/in.zarr/out.zarr", "precomputed://a/in.zarr", "link.zarr"])
def test_plan_output__output_and_input_in_each_other__is_refused(where: str, inputs: str, tmp_path: Path) -> None:
    """However the two are spelled, and even if results may be overwritten."""
    write_image(tmp_path / "a" / "in.zarr", np.zeros((2, 2, 2), np.uint8))
    (tmp_path / "link.zarr").symlink_to(tmp_path / "a" / "in.zarr")
    prefix, name = where.rpartition("//")[::2]
    target = f"{prefix}//{tmp_path / name}" if prefix else tmp_path / name
    with pytest.raises(OutputError, match="lie in each other") as caught:
        plan(target, tmp_path, inputs=inputs.format(tmp_path), overwrite=True)
    assert caught.value.remedy == "Choose an output elsewhere with -o."
    plan(tmp_path / "b" / "out.zarr", tmp_path, inputs=inputs.format(tmp_path))


def test_plan_output__input_inside_of_the_output__is_refused(tmp_path: Path) -> None:
    """It would be replaced along with it."""
    write_image(tmp_path / "out.zarr" / "image", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(OutputError, match="lie in each other"):
        plan(tmp_path / "out.zarr", tmp_path, inputs=str(tmp_path / "out.zarr" / "image"), overwrite=True)


def test_plan_output__something_is_there__only_results_are_replaced_and_only_on_request(tmp_path: Path) -> None:
    """An earlier result needs --overwrite; a folder of anything else is never replaced."""
    write_image(tmp_path / "out.zarr", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(OutputError, match="exists already"):
        plan(tmp_path / "out.zarr", tmp_path)
    assert plan(tmp_path / "out.zarr", tmp_path, overwrite=True).overwrite
    (tmp_path / "photos.zarr").mkdir()
    (tmp_path / "photos.zarr" / "me.jpg").touch()
    with pytest.raises(OutputError, match="no result") as caught:
        plan(tmp_path / "photos.zarr", tmp_path, overwrite=True)
    assert caught.value.remedy == "Choose another name with -o."
    plan(tmp_path / "other.zarr", tmp_path)


def test_plan_output__work_folder_on_another_disk__is_refused_and_the_remedy_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renaming does not go from disk to disk."""
    original = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        """What is below ``disk`` is on another one."""
        found = original(path, **options)
        return os.stat_result((*found[:2], found.st_dev + ("disk" in path.parts), *found[3:10]))

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(OutputError, match="are on different disks") as caught:
        plan(tmp_path / "out.zarr", tmp_path, work=tmp_path / "disk" / "work")
    assert caught.value.remedy.startswith("Put the work folder (--work) onto the output's")
    plan(tmp_path / "out.zarr", tmp_path, work=tmp_path / "work")
    plan(tmp_path / "disk" / "out.zarr", tmp_path, work=tmp_path / "disk" / "work")


def test_plan_output__folder_that_takes_no_files__is_refused(tmp_path: Path) -> None:
    """A file in the place of a folder shows it for every user, root included."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        plan(tmp_path / "file" / "out.zarr", tmp_path)


# --- publish ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    """A work folder that nobody locks."""
    work = WorkFolder(tmp_path / "work", "run")
    work.path("x").parent.mkdir(parents=True)
    return work


def staged(output: Output, work: WorkFolder, value: int) -> LabelSpec:
    """A result with one label everywhere, not finished yet."""
    spec = LabelSpec(output.staged(work), output.store_format, GRID, "uint8", (4, 8, 8), ((1, 1, 1),), output.name)
    create_labels(spec)
    open_labels(spec).write(Box.whole(GRID.shape), np.full(GRID.shape, value, np.uint8))
    work.mark("create", (0,), {})
    return spec


def test_publish__earlier_result__is_replaced_and_all_may_be_repeated(tmp_path: Path, work: WorkFolder) -> None:
    """A crash right after the move finds the result at its place."""
    output = plan(tmp_path / "out.zarr", tmp_path, overwrite=True)
    for value in (1, 2):
        spec = staged(output, work, value)
        for _ in range(2):
            publish(output, spec, work, Source(""))
            assert (zarr.open_group(tmp_path / "out.zarr", mode="r")["0"][:] == value).all()
        assert not Path(spec.where).exists()


def test_plan_output__run_was_killed_after_its_result_appeared__goes_on_without_overwrite(
    tmp_path: Path, work: WorkFolder
) -> None:
    """The same command only has to tidy up; for any other work folder the output is somebody's result."""
    output = plan(tmp_path / "out.zarr", tmp_path)
    spec = staged(output, work, 1)
    publish(output, spec, work, Source(""))
    plan(tmp_path / "out.zarr", tmp_path, work=work.folder)
    with pytest.raises(OutputError, match="exists already"):
        plan(tmp_path / "out.zarr", tmp_path, work=tmp_path / "other")


def test_publish__result_of_somebody_else_has_appeared__is_not_replaced(tmp_path: Path, work: WorkFolder) -> None:
    """During a long run another one may have written there."""
    output = plan(tmp_path / "out.zarr", tmp_path)
    spec = staged(output, work, 1)
    write_image(tmp_path / "out.zarr", np.full((2, 2, 2), 7, np.uint8))
    with pytest.raises(OutputError, match="exists already"):
        publish(output, spec, work, Source(""))
    assert (zarr.open_group(tmp_path / "out.zarr", mode="r")["0"][:] == 7).all()


def test_publish__crash_between_the_two_moves__is_made_good(
    tmp_path: Path, work: WorkFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old result is out of the way, the new one not there yet: the next attempt puts it there."""
    output = plan(tmp_path / "out.zarr", tmp_path, overwrite=True)
    publish(output, staged(output, work, 1), work, Source(""))
    spec, rename, moves = staged(output, work, 2), Path.rename, []

    def once(path: Path, target: Path) -> Path:
        moves.append(path)
        if len(moves) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(output_module.Path, "rename", once)
    with pytest.raises(KeyboardInterrupt):
        publish(output, spec, work, Source(""))
    assert not (tmp_path / "out.zarr").exists()
    publish(output, spec, work, Source(""))
    assert (zarr.open_group(tmp_path / "out.zarr", mode="r")["0"][:] == 2).all()


def test_publish__place_is_taken_from_us__is_an_output_error(tmp_path: Path, work: WorkFolder) -> None:
    """The result is still in the work folder, and gets to its place once that is there again."""
    output = plan(tmp_path / "later" / "out.zarr", tmp_path)
    spec = staged(output, work, 1)
    (tmp_path / "later").rmdir()
    with pytest.raises(OutputError, match="cannot move the result") as caught:
        publish(output, spec, work, Source(""))
    assert (open_labels(spec).read(Box.whole(GRID.shape)) == 1).all()
    assert caught.value.remedy.startswith("Make its folder one that is there")
    (tmp_path / "later").mkdir()
    publish(output, spec, work, Source(""))
    assert (zarr.open_group(tmp_path / "later" / "out.zarr", mode="r")["0"][:] == 1).all()
