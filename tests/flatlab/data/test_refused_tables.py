"""Tables of numbers that are refused, each for the wrong numbers it would be."""

from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from flatlab.data import Reading, load_images
from flatlab.errors import UsageError
from tests.flatlab.data.csv_rows import XY, write


def _table(*lines: str) -> str:
    return "\n".join(lines) + "\n"


ROWS = [f"{k}.5,{k},{'ab'[k % 2]}" for k in range(12)]


@pytest.mark.parametrize(
    ("text", "reading", "reason"),
    [
        (_table("", "1.5,2,3", *ROWS), {}, "begins with numbers: give its columns names"),
        (_table("1.5,2,3", *ROWS), {}, "begins with numbers: give its columns names"),
        (
            _table("5.1,3.5,1.4,0.2,setosa", *(f"{k},1,2,3,a" for k in range(9))),
            {"label": "setosa"},
            "begins with numbers",
        ),
        (_table("0.13,0.64,label", *ROWS), {}, "begins with numbers: give its columns names"),
        (
            _table("x,y,label", *(f"{2**53 + 1 + k},{k},a" for k in range(8))),
            {},
            "'x' whole numbers beyond 2.53, which",
        ),
        (_table(",y,label", *ROWS), {}, "has no name for its column 1"),
        (_table("x,x,label", *ROWS), {}, "has two columns 'x'"),
        (_table("x,y,label", *ROWS, ",4,a"), {}, "Row 13 of the training split .* no finite number in its column 'x'"),
        (_table("x,y,label", *ROWS, "inf,4,a"), {}, "no finite number in its column 'x'"),
        (_table("x,y,label", *ROWS, "1,4,"), {}, "Row 13 of the training split .* neither a whole number nor a name"),
        (_table("x,y,label", *ROWS, "1,4"), {}, "cannot be read: .*Expected 3 columns, got 2"),
        (
            _table("x,y,kind", *ROWS),
            {},
            r"no column that could be its labels: name .* \(label_column\), one of x",
        ),
        (_table("class,y,label", *ROWS), {}, "label and class that could be its labels"),
        (_table("x,y,label", *ROWS), {"label": "z"}, r"no column 'z' \(label_column\)"),
        (_table("x,y,label", *ROWS), {"column": "z"}, r"no column 'z' \(partition_column\)"),
        (_table("x,y,label", *ROWS), {"label": "y", "holdout": 0.2}, "column 'label' what is no number .'a'."),
        (_table("x,y,label", *(f"2026-11-{k:02},{k},a" for k in range(1, 13))), {}, "'x' what is no number"),
        (_table("label", *"abab"), {}, "has labels, and no other column"),
        (_table("x,y,label", *ROWS), {"size": 8}, "has no use for image_size = 8"),
        (_table("x,y,label", *ROWS), {"configuration": "v2"}, "leave hub_config out"),
        (_table("x,y,label", *ROWS), {"holdout": None}, "is one file, with nothing to test on: hold out a share"),
        (_table("x,y,label"), {}, "has 0 training samples"),
        ("", {}, "cannot be read: Empty CSV file"),
        (_table("x,y,label", *ROWS).encode("utf-16"), {}, "cannot be read"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, reading: dict[str, Any], reason: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UsageError, match=reason):
        load_images(str(file), reading=Reading(**{"holdout": 0.25, **reading}))


def test_a_test_split_of_other_columns_or_classes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "f" / "train.csv", [[k, "ab"[k % 2]] for k in range(8)], XY)
    write(tmp_path / "f" / "test.csv", [[k, "ab"[k % 2]] for k in range(8)], ("z", "label"))
    with pytest.raises(UsageError, match="has other columns than its training split: 'x' is in one of them alone"):
        load_images(str(tmp_path / "f"))
    write(tmp_path / "f" / "test.csv", [[k, "abc"[k % 3]] for k in range(8)], XY)
    with pytest.raises(UsageError, match="the label c in its test split"):
        load_images(str(tmp_path / "f"))


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("x", "true", "3"),
        ("x", "2026-01-01", "3"),
        ("x", "0.5", str(2**60 + 1)),
        ("x", "", "words"),
        ("a", "1", "words"),
    ],
)
def test_files_that_write_a_column_in_other_ways_are_refused(
    name: str, first: str, second: str, tmp_path: Path
) -> None:
    for file, value in (("train-0", first), ("train-1", ""), ("train-2", second), ("test", "1")):
        write(tmp_path / "f" / f"{file}.csv", [[value, k, "ab"[k % 2]] for k in range(8)], (name, "y", "label"))
    said = "'x' what is no number .'words' in row 17 of the training split"
    if first:
        said = f"train-2.csv has in its column '{name}' what does not fit that of .*train-0.csv"
    with pytest.raises(UsageError, match=said):
        load_images(str(tmp_path / "f"))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["0", " 1", "NA", "1e3", "oops", "2"], r"'oops' in row 5 of the training split, .* of the type string"),
        (["0", "1_000", "2", "3"], r"'1_000' in row 2"),
        (["0", "1,5", "2", "3"], r"'1,5' in row 2"),
        (["", "2026-01-01", "2026-01-02", "2026-01-03"], r"a date in row 2 .* of the type date32"),
    ],
)
def test_what_is_no_number_is_shown(column: list[str], said: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", [[x, k % 2] for k, x in enumerate(column)], XY)
    with pytest.raises(UsageError, match=f"has in its column 'x' what is no number .{said}"):
        load_images(str(file), reading=Reading(holdout=0.25))


@pytest.mark.parametrize(("values", "said"), [(["1", "2"] * 4, "'1' in row 1"), ([""] * 8, "'' in row 1")])
def test_numbers_that_a_parquet_file_has_as_text_are_said_to_be(values: list[str], said: str, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"x": values, "label": ["a", "b"] * 4}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match=rf"no number \({said} of the training split, .* of the type string"):
        load_images(str(tmp_path / "x.parquet"), reading=Reading(holdout=0.25))


def test_a_parquet_file_without_rows_is_said_to_have_none(tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({"x": pa.array([], pa.string()), "label": pa.array([], pa.string())}), tmp_path / "x.parquet"
    )
    with pytest.raises(UsageError, match="has 0 training samples"):
        load_images(str(tmp_path / "x.parquet"), reading=Reading(holdout=0.25))


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").touch()
    with pytest.raises(UsageError, match=r"neither a folder nor a file of rows \(.csv, .tsv, .parquet\)"):
        load_images(str(tmp_path / "rows.xlsx"))
