"""What c2f-infer says about everything that can be wrong, and that it writes nothing then."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import blobs
from infer_runs import OBLIQUE, SHAPE, Models, assert_same_grid, run, save, snapshot, use, write
from large_volumes import write_image

from coarse2fine.cli import infer as cli
from coarse2fine.cli.stores import pick_engine
from coarse2fine.errors import ConfigError
from coarse2fine.pipeline import Pipeline


@dataclass(frozen=True)
class Run:
    """A run that fails: all that is not given is as it should be.

    Attributes:
        source: Writes the input into a folder.
        target: Name of the output there.
        coarse, fine: Kinds of models; None gives none.
        options: Further arguments; ``{}`` stands for the folder.
    """

    source: Callable[[Path], Path] = lambda folder: save(folder / "a.nrrd")
    target: str = "o.nrrd"
    coarse: str | None = "coarse"
    fine: str | None = "fine"
    options: Sequence[str] = ()

    def arguments(self, folder: Path, models: Models) -> list[object]:
        options = [option.replace("{}", str(folder)) for option in self.options]
        return ["-i", self.source(folder), "-o", folder / self.target, *use(models, self.coarse, self.fine), *options]


def holding(array: np.ndarray, is_vector: bool | None = None) -> Callable[[Path], Path]:
    """Writes an input with these voxels."""

    def source(folder: Path) -> Path:
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=is_vector), str(folder / "a.nrrd"))
        return folder / "a.nrrd"

    return source


def with_one(value: float) -> Callable[[Path], Path]:
    """Writes an input with this value in one voxel."""
    array = np.ones(SHAPE, np.float32)
    array[1, 2, 3] = value
    return holding(array)


def with_channels(*shapes: tuple[int, int, int]) -> Callable[[Path], Path]:
    """Writes a case with channels of these shapes."""

    def source(folder: Path) -> Path:
        for channel, shape in enumerate(shapes):
            save(folder / f"a_{channel:04d}.nrrd", blobs(shape))
        return folder / "a_0000.nrrd"

    return source


def beside(name: str, content: bytes) -> Callable[[Path], Path]:
    """Writes a good input, and another file into the same folder."""

    def source(folder: Path) -> Path:
        write(folder / name, content)
        return save(folder / "a.nrrd")

    return source


def in_folder(folder: Path) -> Path:
    return save(folder / "in" / "a.nrrd").parent


EMPTY_NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 0 4 4\nencoding: raw\nendian: little\n\n"
TINY = replace(OBLIQUE, spacing=(2e-6, 8e-7, 9e-7))
TWO = {"coarse": "coarse2", "fine": "fine2"}
FLAT, MOVIE = blobs(SHAPE)[5], np.stack([blobs(SHAPE)] * 2)
BAD: dict[str, tuple[Run, str]] = {
    # the input
    "missing": (Run(lambda folder: folder / "no.nrrd"), "no.nrrd does not exist"),
    "no volume": (Run(lambda folder: write(folder / "a.txt", b"x")), "a.txt: unknown file type"),
    "junk": (Run(lambda folder: write(folder / "a.nii.gz", b"junk" * 99)), "a.nii.gz is not a NIfTI file"),
    "cut": (Run(lambda folder: write(folder / "a.mha", save(folder / "a.mha").read_bytes()[:2000])), "a.mha"),
    "NaN": (Run(with_one(np.nan)), "a.nrrd: 1 of 10080 voxels are NaN or infinite, the first at (1, 2, 3)"),
    "infinite": (Run(with_one(-np.inf)), "a.nrrd: 1 of 10080 voxels are NaN or infinite"),
    "2D": (Run(holding(FLAT)), "a.nrrd has 2 dimensions"),
    "4D": (Run(holding(MOVIE, is_vector=False)), "a.nrrd has 4 dimensions"),
    "vectors": (Run(holding(MOVIE, is_vector=True)), "a.nrrd: voxels are vectors"),
    "no voxels": (Run(lambda folder: write(folder / "a.nrrd", EMPTY_NRRD)), "a.nrrd"),
    "voxels in metres": (Run(lambda folder: save(folder / "a.nrrd", grid=TINY)), "Check the spacing"),
    "one file, two channels": (Run(**TWO), "the model has 2 channels"),
    "a channel missing": (Run(with_channels(SHAPE), **TWO), "missing a_0001"),
    "a channel too many": (Run(with_channels(SHAPE, SHAPE, SHAPE), **TWO), "extra a_0002.nrrd"),
    "channels differ": (Run(with_channels(SHAPE, (9, 28, 30)), **TWO), "a_0001.nrrd are channels of one case but"),
    "empty folder": (Run(lambda folder: folder, target="out"), "holds no volume"),
    # the models
    "no models": (Run(coarse=None, fine=None), "no fine model"),
    "no coarse model": (Run(coarse=None), "--coarse-model"),
    "no such model": (Run(options=["--fine-model", "{}/nowhere"]), "nowhere does not exist"),
    "folder without model": (Run(options=["--fine-model", "{}"]), "plans.json does not exist"),
    "no such fold": (Run(options=["--set", "fine.folds=[3]"]), "fold_3/checkpoint_final.pth does not exist"),
    "no such checkpoint": (Run(options=["--set", "fine.checkpoint=best.pth"]), "no fold with a best.pth"),
    "labels differ": (Run(fine="liver", options=["--set", "fine.outside=coarse"]), "{'background': 0, 'lesion': 1} in"),
    "channels of models differ": (Run(coarse="coarse2"), "takes 2 channel(s), the fine model"),
    # the settings
    "unknown key": (
        Run(beside("c.yaml", b"mode: accelerated\nrois:\n  treshold: 0.5\n"), options=["-c", "{}/c.yaml"]),
        "c.yaml:3: unknown key 'rois.treshold'; did you mean 'threshold'?",
    ),
    "wrong value": (
        Run(beside("c.yaml", b"rois:\n  threshold: high\n"), options=["-c", "{}/c.yaml"]),
        'c.yaml:2: rois.threshold: found "high"; expected a number',
    ),
    "config misspelt": (Run(options=["-c", "covit"]), "Did you mean 'covid'?"),
    "config missing": (Run(options=["-c", "{}/c.yaml"]), "c.yaml"),
    "set misspelt": (Run(options=["--set", "canvas.slott=[1,1,1]"]), "--set canvas.slott=[1,1,1]: unknown key"),
    "set without value": (Run(options=["--set", "canvas"]), "--set canvas: expected key=value"),
    "canvas not divisible": (Run(options=["--set", "canvas.size=[9,16,16]"]), "canvas.size [9, 16, 16]"),
    "coarse patch not divisible": (Run(options=["--set", "coarse.patch_size=[7,9,9]"]), "coarse.patch_size [7, 9, 9]"),
    "agent misspelt": (
        Run(options=["--set", "assign.agent=greddy"]),
        "assign.agent: no rule, agent or folder named 'greddy'; did you mean 'greedy'? Rules: all_parents",
    ),
    "no such agent": (Run(options=["--set", "assign.agent={}/agent"]), "agent/agent.json is no file"),
    "broken agent": (
        Run(beside("agent/agent.json", b"junk"), options=["--set", "assign.agent={}/agent"]),
        "agent/agent.json is not a JSON file",
    ),
    "slot too large": (Run(options=["--set", "canvas.slot=[64,64,64]"]), "canvas.slot [64, 64, 64]"),
    "no such device": (Run(options=["--device", "toaster"]), "expected auto, cpu, cuda, cuda:N or mps"),
    "device not here": (Run(options=["--device", "cuda:99"]), "device cuda:99 is not available"),
    # the output
    "unknown type": (Run(target="o.png"), "o.png: unknown file type"),
    "below a file": (Run(target="a.nrrd/o.nrrd"), "cannot write"),
    "exists": (Run(beside("o.nrrd", b"precious")), "Use --overwrite"),
    "name too long": (Run(target=f"{'o' * 300}.nrrd"), "File name too long"),
    "folder to file": (Run(in_folder), "in is a folder, but"),
    "input is output": (Run(target="a.nrrd", options=["--overwrite"]), "a.nrrd is an input"),
    "folder onto itself": (Run(in_folder, target="in", options=["--overwrite"]), "a.nrrd is an input"),
    "report is output": (Run(options=["--report", "{}/o.nrrd"]), "o.nrrd is an input or another result"),
    "report is input": (Run(options=["--report", "{}/a.nrrd", "--overwrite"]), "a.nrrd is an input"),
    "report is a folder": (Run(options=["--report", "{}"]), "it is a folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_main__bad_input__says_what_is_wrong_and_writes_nothing(
    tmp_path: Path, models: Models, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each mistake ends with exit code 1, a message that names it and a remedy, and the folder as it was."""
    case, message = BAD[name]
    arguments = case.arguments(tmp_path, models)
    before = snapshot(tmp_path)
    capfd.readouterr()
    assert run(*arguments) == 1
    said = capfd.readouterr()
    problem, *remedy = said.err.splitlines()
    assert said.out == ""
    assert problem.startswith("error: ")
    assert message in said.err
    assert len(remedy) >= 1
    assert all(line.startswith("  ") for line in remedy)
    assert "Traceback" not in said.err
    assert snapshot(tmp_path) == before


# What the message of a run in BAD tells to do, and the run in which it is done.
CURES: dict[str, tuple[str, Run]] = {
    "no models": ("Name its folder with --fine-model", Run()),
    "no coarse model": ("Name the model folder in the configuration or with --coarse-model", Run()),
    "no such model": ("Give the folder that holds plans.json and fold_*", Run()),
    "no such fold": ("Name another checkpoint or fold", Run(options=["--set", "fine.folds=[all]"])),
    "no such checkpoint": (": checkpoint_final.pth", Run(options=["--set", "fine.checkpoint=checkpoint_final.pth"])),
    "labels differ": ("trained on the same labels", Run(options=["--set", "fine.outside=coarse"])),
    "channels of models differ": ("Use two models trained on the same images", Run()),
    "one file, two channels": (
        "Name the files a_0000.nrrd to a_0001.nrrd and give the first",
        Run(with_channels(SHAPE, SHAPE), **TWO),
    ),
    "voxels in metres": ("Check the spacing in the file's header", Run()),
    "canvas not divisible": ("a multiple of [2, 4, 4]", Run(options=["--set", "canvas.size=[10,16,16]"])),
    "coarse patch not divisible": ("a multiple of [2, 4, 4]", Run(options=["--set", "coarse.patch_size=[8,12,12]"])),
    "slot too large": ("Choose a smaller slot", Run(options=["--set", "canvas.slot=[4,8,8]"])),
    "no such agent": ("Or choose by a rule: assign.agent: greedy", Run(options=["--set", "assign.agent=greedy"])),
    "device not here": ("Use device: auto or cpu", Run(options=["--device", "auto"])),
    "unknown type": (".nii.gz", Run(target="o.nii.gz")),
    "exists": ("Use --overwrite", Run(beside("o.nrrd", b"precious"), options=["--overwrite"])),
    "folder to file": ("Name a folder with -o", Run(in_folder, target="out")),
    "input is output": ("Choose another name with -o", Run(target="b.nrrd")),
    "report is output": ("Choose another name with --report", Run(options=["--report", "{}/r.json"])),
    "report is input": ("Choose another name with --report", Run(options=["--report", "{}/r.json"])),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CURES)
def test_main__what_a_message_says_is_done__runs(
    tmp_path: Path, models: Models, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Remedies for what is wrong with a run as a whole; those of files and settings are followed in other tests."""
    remedy, mended = CURES[name]
    for folder in ("wrong", "right"):
        (tmp_path / folder).mkdir()
    assert run(*BAD[name][0].arguments(tmp_path / "wrong", models)) == 1
    assert remedy in capfd.readouterr().err
    assert run(*mended.arguments(tmp_path / "right", models)) == 0


@pytest.mark.long
@pytest.mark.parametrize("given", [["--region", ":,:,:"], ["--channel", 0]])
def test_main__option_for_stores_and_a_file__remedies_work(
    tmp_path: Path, models: Models, given: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    """Without the option the file is segmented; stored as zarr, as the message says, it is with the option."""
    source, target = save(tmp_path / "a.nii.gz"), tmp_path / "b.nii.gz"
    options = [*use(models), "--mode", "one-stage"]
    assert run("-i", source, "-o", target, *options, *given) == 1
    assert "Leave it out, or store the volume as zarr" in capfd.readouterr().err
    assert run("-i", source, "-o", target, *options) == 0
    stored = write_image(tmp_path / "a.zarr", blobs(SHAPE), spacing=OBLIQUE.spacing)
    assert run("-i", stored, "-o", tmp_path / "b.zarr", *options, *given) == 0


def test_main__overwrite__replaces_the_old_result(tmp_path: Path, models: Models) -> None:
    """With the option the old file goes, as it does not without."""
    source, target = save(tmp_path / "a.nii.gz"), write(tmp_path / "b.nii.gz", b"old")
    assert run("-i", source, "-o", target, *use(models)) == 1
    assert target.read_bytes() == b"old"
    assert run("-i", source, "-o", target, "--overwrite", *use(models)) == 0
    assert_same_grid(target, source)


@pytest.mark.long
def test_main__second_of_three_cases_bad__segments_and_reports_the_others(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """One bad case does not stop the others; the run says so, names it at the end, and fails."""
    for name in "abc":
        save(tmp_path / "in" / f"{name}.nii.gz")
    write(tmp_path / "in" / "b.nii.gz", b"junk" * 99)
    report_file = tmp_path / "report.json"
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--report", report_file, *use(models)) == 1
    error = capfd.readouterr().err
    assert "b.nii.gz is not a NIfTI file" in error
    assert "1 of 3 cases failed: b" in error
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "c.nii.gz"]
    assert [report["case"] for report in json.loads(report_file.read_text())] == ["a", "c"]
    assert "Once these are mended, run the same command again with --skip-existing and another --report." in error
    save(tmp_path / "in" / "b.nii.gz")
    arguments = ["-i", tmp_path / "in", "-o", tmp_path / "out", "--report", tmp_path / "2.json", *use(models)]
    assert run(*arguments, "--skip-existing") == 0
    assert json.loads((tmp_path / "2.json").read_text())["case"] == "b"
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--skip-existing", *use(models)) == 0
    assert "nothing to do" in capfd.readouterr().err


@pytest.mark.long
def test_main__part__does_each_nth_case_of_a_folder(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """All parts together do each case once; stores have blocks instead."""
    for name in "abc":
        save(tmp_path / "in" / f"{name}.nii.gz")
    arguments = ["-i", tmp_path / "in", "-o", tmp_path / "out", *use(models), "--mode", "one-stage"]
    done = []
    for part, expected in (("1/2", ["a", "c"]), ("2/2", ["b"]), ("4/4", [])):
        assert run(*arguments, "--part", part) == 0
        done += [f"{name}.nii.gz" for name in expected]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(done)
    for wrong in ("0/2", "3/2", "2"):
        with pytest.raises(SystemExit):
            run(*arguments, "--part", wrong)
    assert "'2' is not I/N with I from 1 to N, such as 1/4" in capfd.readouterr().err
    stored = write_image(tmp_path / "a.zarr", blobs(SHAPE), spacing=OBLIQUE.spacing)
    assert run("-i", stored, "-o", tmp_path / "b.zarr", *use(models), "--skip-existing") == 1
    assert f"--skip-existing is for folders of volumes, and {stored} is a store" in capfd.readouterr().err
    assert run("-i", stored, "-o", tmp_path / "b.zarr", *use(models), "--mode", "one-stage") == 0


def test_main__control_characters_in_a_name__do_not_reach_the_terminal(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """Names come with archives from anywhere; one must not move the cursor or recolour what is said."""
    assert run("-i", tmp_path / "a\x1b[2Jb\x07.nii.gz", "-o", tmp_path / "o.nii.gz", *use(models)) == 1
    assert r"a\x1b[2Jb\x07.nii.gz does not exist" in capfd.readouterr().err


@pytest.mark.parametrize(
    "fill",
    [lambda: np.zeros(1 << 58, np.uint8), lambda: torch.zeros(1 << 58, dtype=torch.uint8)],
    ids=["numpy", "torch"],
)
def test_main__memory_is_full__is_an_error_like_others(
    tmp_path: Path,
    models: Models,
    fill: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """NumPy's and PyTorch's ways to run out of memory end in a message; other errors of theirs are bugs and show."""
    monkeypatch.setattr(Pipeline, "run_files", lambda *_, **__: fill())
    arguments = ["-i", save(tmp_path / "a.nii.gz"), "-o", tmp_path / "b.nii.gz", *use(models)]
    assert run(*arguments) == 1
    assert capfd.readouterr().err.startswith("error: out of memory\n  Check")
    monkeypatch.setattr(Pipeline, "run_files", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError):
        run(*arguments)


def test_pick_engine__dashboard_without_workers__remedy_works() -> None:
    """Blocks that are done by this process itself have no page."""
    parse = cli.build_parser().parse_args
    options = ["-i", "a.zarr", "-o", "b.zarr", "--dashboard"]
    with pytest.raises(ConfigError, match="--dashboard needs --workers") as caught:
        pick_engine(parse(options))
    assert caught.value.remedy.startswith("Add --workers N")
    assert "on this machine" in vars(pick_engine(parse([*options, "--workers", "1"])))["name"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-i/--input and -o/--output are required"),
        (["-i", "a.nii.gz"], "-i/--input and -o/--output are required"),
        (["-i", "a", "-o", "b", "--mode", "fast"], "invalid choice: 'fast'"),
        (["--demo", "--deadline", "9s", "--set", "fine.grow=0"], "leave out --deadline, --set"),
        (["--demo", "-c", "covid", "--mode", "one-stage"], "leave out --config, --mode"),
        (["-i", "a.nii.gz", "-o", "b.nii.gz", "--compare"], "--compare is for --demo"),
    ],
)
def test_main__wrong_usage__shows_the_usage(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Mistakes in the options themselves, those that the demo does not take too, exit with 2 as other programs do."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert message in capfd.readouterr().err
