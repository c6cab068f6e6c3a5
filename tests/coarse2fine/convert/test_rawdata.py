"""Data sets appear as a whole or not at all, in the place and under the number that were asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ct_cases import content, files, mask, run, save

from coarse2fine.cli import infer as infer_cli
from coarse2fine.convert import rawdata


def test_split__named_cases__become_test_cases(covid: Path, tmp_path: Path, capsys: Any) -> None:
    """By their names, or the ends of them that tell them apart."""
    assert run("covid", covid, "-o", tmp_path / "raw", "--split", "volume-covid19-A-0011") == 0
    folder = tmp_path / "raw/Dataset201_COVID1920"
    assert (folder / "labelsTs/volume-covid19-A-0011.nii.gz").is_file()
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 1
    capsys.readouterr()
    assert run("covid", covid, "-o", tmp_path / "b", "--split", "0012") == 1
    said = capsys.readouterr().err
    assert "--split 0012 fits no case\n  Name one of volume-covid19-A-0003, " in said
    names = said.partition("Name one of ")[2].strip().removesuffix(".").split(", ")
    assert run("covid", covid, "-o", tmp_path / "c", "--split", names[0]) == 0
    both = [part for number in ("0003", "0011") for part in ("--split", f"volume-covid19-A-{number}")]
    assert run("covid", covid, "-o", tmp_path / "b", *both) == 1
    assert "no case for training" in capsys.readouterr().err


def test_output__exists__is_replaced_only_when_asked(covid: Path, tmp_path: Path, capsys: Any) -> None:
    """And only if it is a data set and nothing else, and not what is read."""
    raw = tmp_path / "raw"
    folder = raw / "Dataset201_COVID1920"
    assert run("covid", covid, "-o", raw) == 0
    before = content(folder)
    (covid / "Train/volume-covid19-A-0003_ct.nii.gz").unlink()
    (covid / "Train/volume-covid19-A-0003_seg.nii.gz").unlink()
    assert run("covid", covid, "-o", raw) == 1
    assert "exists already\n  Use --overwrite" in capsys.readouterr().err
    assert content(folder) == before
    assert run("covid", covid, "-o", raw, "--overwrite") == 0
    assert len(content(folder)) == len(before) - 2
    assert [path.name for path in raw.iterdir()] == [folder.name]
    (folder / "notes.txt").write_text("mine")
    assert run("covid", covid, "-o", raw, "--overwrite") == 1
    assert "holds more than a data set: notes.txt" in capsys.readouterr().err
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").rename(tmp_path / "notes.txt")
    assert run("covid", covid, "-o", raw, "--overwrite") == 0
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert run("covid", covid, "-o", raw, "--overwrite") == 1
    assert "is no folder of its own\n  Remove it, or choose another --dataset-id" in capsys.readouterr().err
    assert run("covid", covid, "-o", raw, "--dataset-id", 205) == 0
    folder.unlink()
    assert run("covid", covid, "-o", raw) == 0
    assert (tmp_path / "elsewhere/dataset.json").is_file()


def test_output__fails_while_replacing__keeps_the_old_one(
    covid: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it that a case is wrong, or that the very last step fails."""
    raw, rename = tmp_path / "raw", Path.rename

    def fail_once(path: Path, target: Path) -> Path:
        if target.name == "Dataset201_COVID1920":
            monkeypatch.undo()
            raise OSError(5, "Input/output error")
        return rename(path, target)

    assert run("covid", covid, "-o", raw) == 0
    before = content(raw)
    monkeypatch.setattr(Path, "rename", fail_once)
    assert run("covid", covid, "-o", raw, "--overwrite") == 1
    assert "Input/output error" in capsys.readouterr().err
    assert content(raw) == before
    save(covid / "Train/volume-covid19-A-0011_seg.nii.gz", mask(0, 5))
    assert run("covid", covid, "-o", raw, "--overwrite") == 1
    assert content(raw) == before


def test_output__ctrl_c_while_replacing__leaves_one_whole_data_set(
    covid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two steps of putting the new one in the place of the old one neither would be there."""
    raw, rename = tmp_path / "raw", Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        os.kill(os.getpid(), signal.SIGINT)
        return rename(path, target)

    assert run("covid", covid, "-o", raw) == 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
    monkeypatch.setattr(Path, "rename", interrupted)
    try:
        assert run("covid", covid, "-o", raw, "--overwrite") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in raw.iterdir()] == ["Dataset201_COVID1920"]
    assert len(files(raw / "Dataset201_COVID1920")) == 6


def test_output__holds_the_input__is_refused(word: Path, tmp_path: Path, capsys: Any) -> None:
    """A data set cannot be replaced by itself."""
    target = tmp_path / "raw/Dataset202_WORD"
    target.parent.mkdir()
    word.rename(target)
    for split in ("Val", "Ts"):
        for kind in ("images", "labels"):
            for path in (target / f"{kind}{split}").iterdir():
                path.unlink()
    (target / "imagesVal").rmdir()
    (target / "labelsVal").rmdir()
    before = content(target)
    assert run("word", target, "-o", tmp_path / "raw", "--overwrite") == 1
    assert "lies in the output" in (said := capsys.readouterr().err)
    assert content(target) == before
    assert "Choose another folder with -o" in said
    assert run("word", target, "-o", tmp_path / "elsewhere") == 0


@pytest.mark.parametrize(
    ("options", "says", "mended"),
    [
        (["--dataset-id", "0"], "--dataset-id is 0\n  nnU-Net's numbers of data sets have three digits: 1", "1"),
        (["--dataset-id", "1000"], "--dataset-id is 1000\n  nnU-Net's numbers of data sets have three", "999"),
        (["--name", "../away"], "--name is '../away'\n  Use letters, digits, - and _.", "Away-2_b"),
        (
            ["--dataset-id", "5"],
            "holds Dataset005_Other, and nnU-Net allows a number only once\n  Choose another one with --dataset-id.",
            "6",
        ),
    ],
)
def test_output__number_or_name_that_nnunet_refuses__is_refused(
    covid: Path, tmp_path: Path, capsys: Any, options: list[str], says: str, mended: str
) -> None:
    """With the number or name that the message asks for the data set is written."""
    (tmp_path / "raw/Dataset005_Other").mkdir(parents=True)
    assert run("covid", covid, "-o", tmp_path / "raw", *options) == 1
    assert says in capsys.readouterr().err
    assert run("covid", covid, "-o", tmp_path / "raw", options[0], mended) == 0


def test_link__file_system_has_them__are_hard_links(
    covid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies otherwise, as on another disk; and a source that is a symbolic link becomes a file."""

    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    source = covid / "Train/volume-covid19-A-0003_ct.nii.gz"
    source.rename(tmp_path / "elsewhere.nii.gz")
    source.symlink_to(tmp_path / "elsewhere.nii.gz")
    for name, options in (("copied", []), ("linked", ["--link"]), ("refused", ["--link"])):
        if name == "refused":
            monkeypatch.setattr(os, "link", refuse)
        assert run("covid", covid, "-o", tmp_path / name, *options) == 0
        written = tmp_path / name / "Dataset201_COVID1920/imagesTr/volume-covid19-A-0003_0000.nii.gz"
        assert not written.is_symlink()
        assert written.read_bytes() == source.read_bytes()
        assert written.samefile(source) == (name == "linked")


def test_output__folder_cannot_be_made__is_said(covid: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "raw").write_text("a file")
    assert run("covid", covid, "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: cannot write ")
    assert "Check that the folder exists and that you may write there" in said
    assert run("covid", covid, "-o", tmp_path / "other") == 0


def test_output__disk_full__is_said_and_nothing_is_left(
    covid: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rawdata.shutil, "copyfile", full)
    assert run("covid", covid, "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert "No space left on device\n  Name a folder that you may write to with -o, or make room on its disk." in said
    assert list((tmp_path / "raw").iterdir()) == []
    monkeypatch.undo()  # room was made
    assert run("covid", covid, "-o", tmp_path / "raw") == 0


@pytest.mark.alone
def test_output__killed__leaves_a_hidden_folder_at_most(covid: Path, tmp_path: Path) -> None:
    """The data set is not there until it is complete: killed before the last file, nothing carries its name."""
    code = (
        "import os, signal, sys\nfrom coarse2fine.convert import rawdata\nfrom coarse2fine.cli.convert import main\n"
        "rawdata._write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "covid", str(covid), "-o", str(tmp_path / "raw")]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    left = list((tmp_path / "raw").iterdir())
    assert len(left) == 1
    assert left[0].name.startswith(".c2f-")
    assert left[0].stat().st_mode & 0o777 == 0o700
    assert len(files(left[0])) == 5
    assert run("covid", covid, "-o", tmp_path / "raw") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt__while_reading__leaves_nothing(
    covid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The exit code names the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(rawdata, "judge", interrupt)
    try:
        assert run("covid", covid, "-o", tmp_path / "raw") == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
    assert list((tmp_path / "raw").iterdir()) == []


def test_next_commands__as_printed__are_understood(
    covid: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell splits them into what the commands take, also if the folder has a space."""
    raw = tmp_path / "my raw"
    assert run("covid", covid, "-o", raw, "--dataset-id", 9) == 0
    printed = capsys.readouterr().out.partition("next:\n")[2]
    split = subprocess.run(
        ["sh", "-c", f"set -f; for a in {printed.splitlines()[-1]}; do printf '%s\\0' \"$a\"; done"],
        env={"nnUNet_results": str(tmp_path / "my results")},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    options = infer_cli.build_parser().parse_args(split[1:-1])
    assert Path(options.input) == raw / "Dataset009_COVID1920/imagesTs"
    assert Path(options.coarse_model).parts[-2:] == ("Dataset009_COVID1920", "nnUNetTrainer__nnUNetPlans__3d_lowres")
    assert Path(options.fine_model).parts[-3:-1] == ("my results", "Dataset009_COVID1920")
    assert options.config == "covid"
    assert f"export nnUNet_raw='{raw}'\n" in printed
    assert "nnUNetv2_plan_and_preprocess -d 9 --verify_dataset_integrity" in printed
    assert "nnUNetv2_train 9 3d_lowres all\nnnUNetv2_train 9 3d_fullres all\n" in printed
    monkeypatch.setenv("nnUNet_raw", str(raw))
    assert run("covid", covid, "-o", raw, "--dataset-id", 9, "--overwrite") == 0
    assert "export" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says", "mended"),
    [
        (["covid", "nowhere"], "cannot list nowhere: No such file or directory\n  Name a folder of the data", "covid"),
        (["covid", "."], "_ct.nii.gz\n  Name the folder that holds Train and Validation, or one of these", "covid"),
        (["covid", "."], "_ct.nii.gz\n  Name the folder that holds Train and Validation, or one of", "covid/Train"),
        (["word", "nowhere"], "holds no .nii.gz file\n  Name the folder that holds WORD's imagesTr", "WORD"),
    ],
)
@pytest.mark.usefixtures("covid", "word")
def test_source__not_the_data_set__is_said(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str, mended: str
) -> None:
    """With the folder that the message asks for the data set is written."""
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "-o", "raw") == 1
    assert says in capsys.readouterr().err
    assert run(arguments[0], mended, "-o", "raw") == 0
