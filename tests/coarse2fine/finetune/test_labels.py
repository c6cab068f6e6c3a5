"""Labels from tables: values, splits, and what cannot be learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_tables import save_set, write_table

from coarse2fine.errors import C2FError
from coarse2fine.finetune.gather import Asked, choose, load
from coarse2fine.finetune.labels import check_share, read_classes, read_labels, split
from coarse2fine.finetune.run import Settings
from coarse2fine.finetune.tasks import Classification
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.table import Row, Table, read_table

Column = dict[str, str]


def table_of(*rows: Column) -> Table:
    """A table without files, of patients p0, p1 and so on unless a row says otherwise."""
    return Table(
        Path("t.csv"),
        tuple(Row(f"{at}.png", Path(f"{at}.png"), row.get("patient", f"p{at}"), row) for at, row in enumerate(rows)),
    )


def column(name: str, *values: str) -> Table:
    return table_of(*({name: value} for value in values))


def test_read_labels__columns_of_0_and_1__become_rows_of_numbers() -> None:
    """Words for yes and no are understood."""
    table = table_of({"a": "0", "b": "yes"}, {"a": "1.0", "b": "False"})
    task, rows = read_labels(table, ["b", "a"])
    assert task == Classification(("b", "a"))
    assert rows.tolist() == [[1, 0], [0, 1]]


def test_read_classes__a_column_of_words__becomes_one_label_of_each() -> None:
    """In alphabetical order, without spaces around them."""
    task, rows = read_classes(column("kind", "b", " a", "b", "c"), "kind")
    assert task == Classification(("a", "b", "c"), exclusive=True)
    assert rows.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("read", "says", "better"),
    [
        (lambda: read_labels(column("a", "0", "2"), ["a"]), "'a' of '1.png' is '2'", column("a", "0", "1")),
        (lambda: read_labels(column("a", "0", ""), ["a"]), "'a' of '1.png' is ''", column("a", "0", "1")),
        (lambda: read_labels(column("a", "1", "1"), ["a"]), "'a' is 1 for all 2 images", column("a", "0", "1")),
        (lambda: read_labels(column("a", "0", "1"), ["b"]), "no column 'b'", column("b", "0", "1")),
        (lambda: read_labels(column("a", "0", "1"), ["a", "a"]), "names one twice", column("a", "0", "1")),
        (lambda: read_classes(column("a", "x", "x"), "a"), "'a' is 'x' for all 2 images", column("a", "x", "y")),
        (lambda: read_classes(column("a", "x", ""), "a"), "'1.png' has no 'a'", column("a", "x", "y")),
        (lambda: read_classes(column("a", "x", "y"), "b"), "no column 'b'", column("b", "x", "y")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_read__columns_that_cannot_be_learned__are_refused_by_their_value(
    read: Callable[[], object], says: str, better: Table
) -> None:
    """With the value that the remedy asks for they are taken."""
    with pytest.raises(C2FError, match=says):
        read()
    name = next(iter(better.rows[0].columns))
    assert read_classes(better, name)[1].shape == (2, 2)
    if better.rows[0].columns[name] == "0":
        assert read_labels(better, [name])[1].shape == (2, 1)


def test_split__a_column_that_says_so__is_followed_and_validation_left_out() -> None:
    """Without it patients are held out at random."""
    rows = [{"split": name} for name in ("train", "val", "test", "Train", "test")]
    train, test = split(table_of(*rows), 0.2, 0)
    assert (train.tolist(), test.tolist()) == ([0, 3], [2, 4])
    train, test = split(column("a", *"01010"), 0.4, 0)
    assert (len(train), len(test)) == (3, 2)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"split": "train", "patient": "x"}, {"split": "test", "patient": "x"}],
            "patient 'x' is in train and in test",
        ),
        (
            [{"split": "val", "patient": "x"}, {"split": "train", "patient": "x"}, {"split": "test"}],
            "patient 'x' is in",
        ),
        ([{"split": "train"}, {"split": "other"}], "the split of '1.png' is 'other'"),
        ([{"split": "train"}, {"split": "train"}], "no row has the split test"),
        ([{"split": "val"}, {"split": "test"}], "no row has the split train"),
    ],
)
def test_split__a_column_that_cannot_be__is_refused_and_without_it_there_is_a_split(
    rows: list[Column], says: str
) -> None:
    """Patients in two splits, unknown words, and splits without rows."""
    with pytest.raises(C2FError, match=says):
        split(table_of(*rows), 0.2, 0)
    others = [{"split": "train"}, {"split": "val"}, {"split": "test"}]
    assert [part.tolist() for part in split(table_of(*others), 0.2, 0)] == [[0], [2]]


def test_check_share__one_class_only__is_refused_and_what_is_missing_said() -> None:
    """Several labels need one that differs between images, classes need two."""
    several, one = Classification(("a", "b")), Classification(("a", "b", "c"), exclusive=True)
    assert check_share(several, np.array([[0, 1], [1, 1]]), 2) == ("the 2 patients to learn from say nothing of b",)
    assert check_share(one, np.array([[1, 0, 0], [0, 1, 0]]), 2) == ("the 2 patients to learn from say nothing of c",)
    with pytest.raises(C2FError, match="are all alike in a, b"):
        check_share(several, np.array([[0, 1], [0, 1]]), 1)
    with pytest.raises(C2FError, match="are of one class only: b"):
        check_share(one, np.array([[0, 1, 0], [0, 1, 0]]), 1)


def test_load__pictures_with_labels__are_normalised_by_those_to_learn_from(tmp_path: Path) -> None:
    """Test pictures are of other patients; the share is of patients; what pretraining knew of intensities counts."""
    table = read_table(save_set(tmp_path))
    settings = Settings(Schedule(1, 1), share=0.5, test_share=0.25)
    chosen = choose(table, Asked(labels=("bright", "left")), settings)
    data = load(chosen, (16, 16), 1, settings, tmp_path)
    assert (len(data.test), len(data.train)) == (6, 10)  # of 3 and half of 9 patients, with two pictures each
    assert not set(data.test.patients) & set(data.train.patients)
    every = np.stack([data.intensities.normalise(image) for image in np.load(tmp_path / "pictures.npy")[chosen.train]])  # type: ignore[union-attr]
    assert every.mean() == pytest.approx(0, abs=1e-4)
    assert every.std() == pytest.approx(1, abs=1e-4)
    row = {row.name: row for row in table.rows}[data.train.names[0]]
    assert data.train.targets[0].tolist() == [float(row.columns["bright"]), float(row.columns["left"])]
    assert data.train.images[0].shape == (1, 16, 16)


def test_load__masks_of_some_pictures__are_classes_of_those(tmp_path: Path) -> None:
    """Two grey values are background and foreground; otherwise values are the numbers of classes."""
    path = save_set(tmp_path)
    (tmp_path / "masks" / "p00.png").unlink()
    settings = Settings(Schedule(1, 1))
    chosen = choose(read_table(path), Asked(masks=tmp_path / "masks"), settings)
    assert len(chosen.table) == 23
    data = load(chosen, (16, 16), 1, settings, tmp_path)
    assert data.task.outputs == 2
    assert all(target.sum() == 36 for target in data.train.targets)
    with pytest.raises(C2FError, match=r"holds no mask of any picture, such as 'p00\.png'"):
        choose(read_table(path), Asked(masks=tmp_path), settings)
    with pytest.raises(C2FError, match="does not exist"):
        choose(read_table(path), Asked(masks=tmp_path / "nowhere"), settings)


def test_load__share_that_is_too_small_for_two_classes__is_refused_before_pictures_are_read(tmp_path: Path) -> None:
    """A larger share works."""
    path = write_table(tmp_path / "t.csv", ("file", "patient", "a"), [("t.csv", f"p{n}", n % 2) for n in range(20)])
    with pytest.raises(C2FError, match="are all alike in a") as error:
        choose(read_table(path), Asked(labels=("a",)), Settings(Schedule(1, 1), share=0.05))
    assert error.value.remedy == "Use a larger --share."
    assert choose(read_table(path), Asked(labels=("a",)), Settings(Schedule(1, 1), share=0.15))
