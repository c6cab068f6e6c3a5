"""Published sets of radiographs, made here in their layouts, as tables."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from dicom_series import make_slice
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import ComputedRadiographyImageStorage, JPEGBaseline8Bit

from coarse2fine.cli.convert import main
from coarse2fine.convert.chestxray14 import LABELS
from coarse2fine.convert.mimic_cxr import sections
from coarse2fine.convert.radiographs import FINDINGS
from coarse2fine.convert.siim_acr import decode
from coarse2fine.io import Grid
from coarse2fine.pretrain.pictures import load_pictures
from coarse2fine.pretrain.table import Table, read_table

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  Cough.

 FINDINGS:

 The lungs are clear.
 No effusion.

 IMPRESSION:  No acute process.
"""


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5), 90, np.uint8)).save(path)


def lines(path: Path, *rows: str) -> None:
    content = "".join(f"{row}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def convert(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def read(out: Path, source: Path) -> Table:
    """By what ``c2f-pretrain`` reads tables with, which sees that pictures are there."""
    table = read_table(out / "table.csv", source)
    load_pictures(table.files, (4, 4))
    return table


@pytest.fixture
def mimic(tmp_path: Path) -> Path:
    """Two patients, three studies, four pictures, a report too few."""
    source = tmp_path / "mimic"
    for study, pictures in (
        ("p10/p10000032/s1", ("a", "b")),
        ("p10/p10000032/s2", ("c",)),
        ("p19/p19999999/s3", ("d",)),
    ):
        for name in pictures:
            picture(source / "files" / study / f"{name}.jpg")
    for study in ("p10/p10000032/s1", "p19/p19999999/s3"):
        (source / "files" / f"{study}.txt").write_text(REPORT)
    table = "mimic-cxr-2.0.0-{}.csv{}"
    lines(
        source / table.format("split", ".gz"),
        "dicom_id,study_id,subject_id,split",
        *("a,1,10000032,train", "b,1,10000032,train", "c,2,10000032,train", "d,3,19999999,validate"),
    )
    lines(
        source / table.format("metadata", ""),
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition",
        *("a,10000032,1,CHEST (PA AND LAT),PA", "b,10000032,1,CHEST (PA AND LAT),LATERAL", 'c,10000032,2,"A, B",AP'),
    )
    order = ",".join(sorted(FINDINGS))
    marks = dict.fromkeys(sorted(FINDINGS), "") | {"Edema": "-1.0", "Pneumonia": "1.0", "Fracture": "0.0"}
    lines(
        source / table.format("chexpert", ".gz"),
        f"subject_id,study_id,{order}",
        f"10000032,1,{','.join(marks.values())}",
    )
    return source


def test_mimic_cxr__its_layout__is_a_table_with_reports_and_labels(
    mimic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gzipped or not; a study without a report stays, with a warning."""
    assert convert("mimic-cxr", mimic, "-o", tmp_path / "out") == 0
    said = "".join(capsys.readouterr())
    table = read(tmp_path / "out", mimic)
    assert table.column("file")[0] == "files/p10/p10000032/s1/a.jpg"
    assert table.patients == ["p10000032"] * 3 + ["p19999999"]
    assert table.column("study") == ["s1", "s1", "s2", "s3"]
    assert table.column("split") == ["train", "train", "train", "val"]
    assert table.column("view") == ["PA", "LATERAL", "AP", ""]
    assert table.column("text") == ["The lungs are clear. No effusion. No acute process."] * 2 + [
        "",
        table.column("text")[0],
    ]
    assert [table.column(name)[0] for name in ("Edema", "Pneumonia", "Fracture", "Pleural Other")] == [
        "0",
        "1",
        "0",
        "0",
    ]
    assert "1 pictures have no report" in said
    assert "--objective mrm" in said


def test_mimic_cxr__options__choose_views_reports_and_what_uncertain_is(mimic: Path, tmp_path: Path) -> None:
    """Reports may lie in a folder of their own."""
    (tmp_path / "reports").mkdir()
    for path in sorted(mimic.rglob("s*.txt")):
        target = tmp_path / "reports" / path.relative_to(mimic)
        target.parent.mkdir(parents=True)
        path.rename(target)
    assert convert("mimic-cxr", mimic, "-o", tmp_path / "none") == 1
    options = ("--frontal", "--uncertain", "ones", "--reports", tmp_path / "reports")
    assert convert("mimic-cxr", mimic, "-o", tmp_path / "out", *options) == 0
    table = read(tmp_path / "out", mimic)
    assert table.column("view") == ["PA", "AP"]
    assert table.column("Edema") == ["1", "0"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (REPORT, "The lungs are clear. No effusion. No acute process."),
        ("IMPRESSION: Normal.", "Normal."),
        ("FINDINGS: A.\nCOMPARISON: None.", "A."),
        ("FINAL REPORT\n\n Chest film.\n\n Lungs clear: no change.\n", "Lungs clear: no change."),
        ("", ""),
    ],
)
def test_sections__report__is_findings_and_impression_or_the_last_paragraph(text: str, expected: str) -> None:
    """Headings are in capitals, before a colon."""
    assert sections(text) == expected


@pytest.fixture
def nih(tmp_path: Path) -> Path:
    """Three patients; a picture in none of the lists, and one that was not downloaded."""
    source = tmp_path / "nih"
    for folder, name in (
        ("images_001", "00000001_000.png"),
        ("images_001", "00000001_001.png"),
        ("images_002", "00000002_000.png"),
    ):
        picture(source / folder / "images" / name)
    lines(
        source / "Data_Entry_2017.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,58,M,PA,2682,2749,0.143,0.143,",
        "00000001_001.png,No Finding,1,1,58,M,AP,2682,2749,0.143,0.143,",
        "00000002_000.png,Hernia,0,2,81,M,PA,2500,2048,0.171,0.171,",
        "00000003_000.png,Pleural_Thickening,0,3,81,M,PA,2500,2048,0.171,0.171,",
    )
    lines(source / "train_val_list.txt", "00000001_000.png", "00000003_000.png")
    lines(source / "test_list.txt", "00000002_000.png")
    return source


def test_chestxray14__its_layout__is_a_table_with_the_official_split(
    nih: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing or in no list is left out and said; every label is a column."""
    assert convert("chestxray14", nih, "-o", tmp_path / "out") == 0
    said = "".join(capsys.readouterr())
    table = read(tmp_path / "out", nih)
    assert table.column("file") == ["images_001/images/00000001_000.png", "images_002/images/00000002_000.png"]
    assert table.patients == ["1", "2"]
    assert table.column("split") == ["train", "test"]
    marked = [[label for label in LABELS if table.column(label)[row] == "1"] for row in range(2)]
    assert marked == [["Cardiomegaly", "Emphysema"], ["Hernia"]]
    assert "1 pictures are missing" in said
    assert "1 pictures are in none of the lists" in said
    assert convert("chestxray14", nih, "-o", tmp_path / "whole", "--no-split") == 0
    whole = read(tmp_path / "whole", nih)
    assert len(whole) == 3
    assert "split" not in whole.rows[0].columns


def test_chexpert__its_layout__is_a_table_with_labels(tmp_path: Path) -> None:
    """Paths begin with the folder that Stanford's archive unpacks to; uncertain is what was asked for."""
    source = tmp_path / "CheXpert-v1.0-small"
    names = ("train/patient00001/study1/view1_frontal.jpg", "train/patient00001/study1/view2_lateral.jpg")
    for name in (*names, "valid/patient64541/study1/view1_frontal.jpg"):
        picture(source / name)
    order = ["No Finding", *(name for name in FINDINGS if name != "No Finding")]
    head = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{','.join(order)}"
    empty = dict.fromkeys(order, "")
    marks = [",".join((empty | {"Edema": "-1.0", "Fracture": "1.0"}).values()), ",".join(empty.values())]
    lines(
        source / "train.csv",
        head,
        *(f"CheXpert-v1.0-small/{name},Female,68,x,AP,{mark}" for name, mark in zip(names, marks, strict=True)),
    )
    lines(
        source / "valid.csv",
        head,
        f"CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,{marks[0]}",
    )
    assert convert("chexpert", source, "-o", tmp_path / "out", "--uncertain", "ones", "--frontal") == 0
    table = read(tmp_path / "out", source)
    assert table.column("file") == [names[0], "valid/patient64541/study1/view1_frontal.jpg"]
    assert table.patients == ["patient00001", "patient64541"]
    assert table.column("split") == ["train", "test"]
    assert (table.column("Edema"), table.column("Fracture")) == (["1", "1"], ["1", "1"])


def test_siim_acr__its_layout__is_a_table_with_masks(tmp_path: Path) -> None:
    """Several rows of a picture are one mask; -1 is an empty one."""
    source = tmp_path / "siim"
    for name in ("1.2.3", "1.2.4"):
        picture(source / "train" / f"{name}.png")
    lines(
        source / "train-rle.csv",
        "ImageId, EncodedPixels",
        "1.2.3, 0 2 1022 3",
        "1.2.3,5000 1",
        "1.2.4, -1",
        "1.2.5, -1",
    )
    assert convert("siim-acr", source, "-o", tmp_path / "out") == 0
    table = read(tmp_path / "out", source)
    assert table.column("Pneumothorax") == ["1", "0"]
    masks = [np.asarray(Image.open(tmp_path / "out/masks" / f"{name}.png")) for name in ("1.2.3", "1.2.4")]
    assert masks[0].shape == (1024, 1024)
    assert sorted(map(tuple, np.argwhere(masks[0]).tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (904, 4)]
    assert not masks[1].any()


GRID = Grid((1, 6, 5), (1.0, 1.0, 1.0))


def radiograph(path: Path, stored: np.ndarray, *, jpeg: bool = False, **changes: object) -> None:
    """A projection as the challenge published it: it lies nowhere, and is packed as JPEG."""
    nowhere = dict.fromkeys(("ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept"))
    image = ComputedRadiographyImageStorage
    content = make_slice(stored, GRID, 0, SOPClassUID=image, Modality="CR", **{**nowhere, **changes})
    if jpeg:
        packed = io.BytesIO()
        Image.fromarray(stored).save(packed, "JPEG", quality=95)
        content.PixelData = encapsulate([packed.getvalue()])
        content.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    path.parent.mkdir(parents=True, exist_ok=True)
    content.save_as(path, enforce_file_format=True)


def test_siim_acr__dicom_files__become_pictures_of_their_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packed or not, of 8 bits or of 12 where high values are dark; the next command names where they are."""
    source, out, generator = tmp_path / "siim", tmp_path / "out", np.random.default_rng(0)
    plain, deep = generator.integers(0, 256, (6, 5), np.uint8), generator.integers(0, 4096, (6, 5), np.uint16)
    smooth = np.add.outer(np.arange(0, 160, 20), np.arange(0, 40, 5)).astype(np.uint8)
    radiograph(source / "dicom-images-train/s1/t1/1.2.3.dcm", plain, PatientID="p1")
    dark = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    radiograph(source / "dicom-images-train/s2/t2/1.2.4.dcm", deep, PatientID="p1", **dark)
    radiograph(source / "dicom-images-train/s3/t3/1.2.5.dcm", smooth, jpeg=True, PatientID=None)
    lines(source / "train-rle.csv", "ImageId, EncodedPixels", "1.2.3, 0 2 1022 3", "1.2.4, -1", "1.2.5,-1", "1.2.6,-1")
    assert convert("siim-acr", source, "-o", out) == 0
    said = "".join(capsys.readouterr())
    assert "1 pictures are missing" in said
    assert f"--images {out / 'images'} --masks {out / 'masks'}" in said
    table = read_table(out / "table.csv")
    assert table.patients == ["p1", "p1", "1.2.5"]
    assert table.column("Pneumothorax") == ["1", "0", "0"]
    found = [np.asarray(Image.open(row.file)) for row in table.rows]
    assert np.array_equal(found[0], plain)
    assert np.array_equal(found[1], 4095 - deep)
    assert np.abs(found[2].astype(int) - smooth).max() < 8
    assert [row.file.stem for row in table.rows] == [path.stem for path in sorted((out / "masks").iterdir())]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"SamplesPerPixel": 3}, "SamplesPerPixel"),
        ({"PhotometricInterpretation": "RGB"}, "PhotometricInterpretation"),
        ({"NumberOfFrames": 2}, "NumberOfFrames"),
        ({"PixelRepresentation": 1}, "PixelRepresentation"),
        ({"Rows": 6000}, "more than its"),
    ],
)
def test_siim_acr__dicom_file_that_is_no_radiograph__is_refused_by_what_differs(
    changes: dict[str, object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the element that is wrong it is taken."""
    source, out = tmp_path / "siim", tmp_path / "out"
    radiograph(source / "a.dcm", np.zeros((6, 5), np.uint8), **changes)
    lines(source / "train-rle.csv", "ImageId,EncodedPixels", "a,-1")
    assert says in broken(source, out, capsys, "siim-acr")
    radiograph(source / "a.dcm", np.zeros((6, 5), np.uint8))
    assert convert("siim-acr", source, "-o", out) == 0


@settings(max_examples=30)
@given(st.lists(st.integers(0, 1), min_size=49, max_size=49))
def test_decode__any_mask__is_the_one_that_was_encoded(pixels: list[int]) -> None:
    """Encoded pixel by pixel, with what is skipped since the last run."""
    mask = np.array(pixels, bool).reshape(7, 7)
    numbers, last, run = [], 0, 0
    for place, on in enumerate([*mask.T.ravel().tolist(), False]):
        if on:
            run += 1
        elif run:
            numbers += [place - run - last, run]
            last, run = place, 0
    assert (decode([" ".join(map(str, numbers))] if numbers else [], 7) == mask).all()


def broken(source: Path, out: Path, capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """The message of a command that fails, without a traceback."""
    assert convert(*command[:1], source, "-o", out, *command[1:]) == 1
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    assert not (out / "table.csv").exists()
    return " ".join(said.split())


def test_convert__files_missing__are_named_with_what_helps(
    nih: Path, mimic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear line each; --no-split works."""
    out = tmp_path / "out"
    (nih / "test_list.txt").unlink()
    assert "holds no test_list.txt" in broken(nih, out, capsys, "chestxray14")
    assert convert("chestxray14", nih, "-o", tmp_path / "whole", "--no-split") == 0
    (mimic / "mimic-cxr-2.0.0-split.csv.gz").rename(mimic / "split.csv.gz")
    assert "holds no mimic-cxr-2.0.0-split.csv" in broken(mimic, out, capsys, "mimic-cxr")
    assert "holds no train.csv" in broken(nih, out, capsys, "chexpert")
    assert "holds no train-rle.csv" in broken(tmp_path / "nowhere", out, capsys, "siim-acr")
    for path in nih.rglob("*.png"):
        path.unlink()
    assert "holds none of the 4 pictures" in broken(nih, out, capsys, "chestxray14", "--no-split")


def test_convert__tables_that_are_damaged__are_refused(
    nih: Path, mimic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the value, and where it is."""
    out, source = tmp_path / "out", tmp_path / "siim"
    labels = mimic / "mimic-cxr-2.0.0-chexpert.csv.gz"
    with gzip.open(labels, "rt") as file:
        text = file.read()
    with gzip.open(labels, "wt") as file:
        file.write(text.replace("-1.0", "maybe"))
    assert "'maybe' is no label" in broken(mimic, out, capsys, "mimic-cxr")
    labels.write_bytes(labels.read_bytes()[:40])
    assert "cannot be read" in broken(mimic, out, capsys, "mimic-cxr")
    entries = nih / "Data_Entry_2017.csv"
    entries.write_text(entries.read_text().replace("Hernia", "Hernias"))
    assert "'Hernias' of '00000002_000.png' is no label" in broken(nih, out, capsys, "chestxray14")
    picture(source / "1.png")
    for runs in ("1", "x 1", "0 -5", f"0 {1024 * 1024 + 1}"):
        lines(source / "train-rle.csv", "ImageId,EncodedPixels", f"1,{runs}")
        assert "run lengths of '1'" in broken(source, out, capsys, "siim-acr")
    lines(source / "train-rle.csv", "ImageId,Pixels", "1,-1")
    assert "has no column 'EncodedPixels'" in broken(source, out, capsys, "siim-acr")
    (source / "1.png").rename(source / "1.dcm")
    lines(source / "train-rle.csv", "ImageId,EncodedPixels", "1,-1")
    assert "1.dcm does not say how it is packed" in broken(source, out, capsys, "siim-acr")
    (source / "1.dcm").unlink()
    picture(source / "1.png")
    assert convert("siim-acr", source, "-o", out) == 0
    assert convert("siim-acr", source, "-o", out) == 1  # is there
    with (out / "table.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"file": "1.png", "patient": "1", "Pneumothorax": "0"}]
