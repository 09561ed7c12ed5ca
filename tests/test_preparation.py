"""Reading the tables of a raw release: nothing is cut in silence, and rows are found again in an editor."""

import pytest

from data_scripts.preparation import is_phantom, read_lines, read_table
from mgca_lib.data.studies import DatasetError


def test_a_row_is_named_by_the_line_that_it_begins_on(tmp_path):
    """A quoted cell may hold line breaks; an editor counts them."""
    path = tmp_path / "notes.csv"
    path.write_text('image,note\na,"one\ntwo\nthree"\n\nb,plain\nc,"four\nfive"\nd,\n', encoding="utf-8")
    table = read_table(path, ("image", "note"))
    lines = path.read_text(encoding="utf-8").split("\n")
    for row in table.to_dict("records"):
        assert lines[row["row"] - 1].startswith(row["image"])
    assert table["row"].tolist() == [2, 6, 7, 9]


@pytest.mark.parametrize("long", [1, 2])
def test_a_row_longer_than_the_header_is_refused(tmp_path, long):
    """Pandas cuts all rows where the first one is too long, and says so in a warning."""
    rows = ["a,0 1 1 9 9"] * 3
    rows[long - 1] += ",0 20 20 40 40"
    path = tmp_path / "boxes.csv"
    path.write_text("\n".join(["image,annotation", *rows]), encoding="utf-8")
    with pytest.raises(DatasetError, match=rf"boxes.csv: .*line {long + 1}\b"):
        read_table(path, ("image", "annotation"))


def test_surplus_columns_with_a_header_are_left_alone(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("image,box [x,y],\na,1,2,\n", encoding="utf-8")
    assert read_table(path, ("image", "y]")).to_dict("records") == [{"image": "a", "y]": "2", "row": 2}]


def test_lines_are_counted_from_one(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\n a \n\nb\n", encoding="utf-8")
    assert read_lines(path) == [(2, "a"), (4, "b")]


@pytest.mark.parametrize("text", ["image,note\na,b\nc,d\0\n", "image,note\na,b\n\0\0\0\0"])
def test_zero_bytes_are_refused(tmp_path, text):
    """A copy that broke off leaves them, and no path may hold one."""
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8")
    for read in (read_lines, lambda path: read_table(path, ("image", "note"))):
        with pytest.raises(DatasetError, match=r"list.csv: row 3: holds zero bytes"):
            read(path)


def test_only_the_mark_in_the_folder_itself_counts(tmp_path):
    (tmp_path / "release").mkdir()
    (tmp_path / "PHANTOM.json").write_text("{}")
    assert is_phantom(tmp_path)
    assert not is_phantom(tmp_path / "release")
