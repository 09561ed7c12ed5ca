"""The prepared dataset: what is written is what is loaded, and every breach of the contract is named."""

import copy
import hashlib
import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import CARD, tiny_studies, tiny_table

from mgca_lib.data import studies as module
from mgca_lib.data.studies import COLUMNS, DatasetError, load_card, load_studies, write_studies

SIZES = {"train": 3, "valid": 2, "test": 2}
NAN = float("nan")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with the images, and the table that fits them."""
    root = tmp_path_factory.mktemp("drawn")
    table = tiny_table(root, **SIZES)
    (root / "masks").mkdir()
    (root / "masks/a.png").write_bytes((root / "images/train000.png").read_bytes())
    return root, table


def changed(table, row, column, value):
    """A deep copy of the table with one cell replaced."""
    rows = copy.deepcopy(table.to_dict("records"))
    rows[row][column] = value
    return pd.DataFrame(rows, columns=table.columns, dtype=object)


def write(root, table, **card):
    return write_studies(root, table, **({"restricted": False} | CARD | card))


def box(**values):
    return [{"x": 1.0, "y": 1.0, "w": 5.0, "h": 5.0, "name": "a"} | values]


def test_round_trip(drawn):
    root, table = drawn
    table = changed(table, 1, "mask", "masks/a.png")
    table = changed(table, 2, "findings", 'Größe "12", line\nbreak')
    card = write(root, table, restricted=True, options={"size": 40, "views": ["PA"]})
    loaded = load_studies(root)
    assert loaded.card == card
    assert load_card(root) == card
    assert card.counts == {"train": 3, "valid": 2, "test": 2}
    assert card.restricted is True
    assert card.options == {"size": 40, "views": ["PA"]}
    assert card.table_sha256 == hashlib.sha256((root / "studies.parquet").read_bytes()).hexdigest()
    assert tuple(loaded.table.columns) == COLUMNS
    for stored, given in zip(loaded.table.to_dict("records"), table.to_dict("records"), strict=True):
        assert list(stored["sentences"]) == given["sentences"]
        assert list(stored["boxes"]) == given["boxes"]
        assert list(stored["labels"].items()) == list(given["labels"].items())
        for column in set(COLUMNS) - {"sentences", "boxes", "labels"}:
            assert stored[column] == given[column], column
    assert sorted(path.name for path in root.iterdir()) == ["card.json", "images", "masks", "studies.parquet"]


def test_same_table_same_bytes(drawn):
    root, table = drawn
    first = write(root, table)
    card = (root / "card.json").read_bytes()
    shuffled = table[list(reversed(table.columns))].set_index(np.arange(len(table)) + 5)
    assert write(root, shuffled) == first
    assert (root / "card.json").read_bytes() == card
    other = write(root, changed(table, 0, "source", "elsewhere"))
    assert other.table_sha256 != first.table_sha256


def test_a_written_dataset_loads_and_writes_again(drawn):
    """What load returns (arrays for lists) is a valid table, with the same bytes."""
    root, table = drawn
    card = write(root, table)
    assert write(root, load_studies(root).table) == card


def test_labels_nan_and_none_are_the_same(drawn):
    root, table = drawn
    none, nan = (changed(table, 0, "labels", table["labels"][0] | {"Edema": value}) for value in (None, NAN))
    assert write(root, none).table_sha256 == write(root, nan).table_sha256
    assert math.isnan(load_studies(root).labels(["Edema"])[0, 0])


CELLS = [
    (0, "image_id", 17, "expected text"),
    (0, "image_id", "", "empty"),
    (2, "image_id", "train000", "'train000' appears twice"),
    (1, "patient_id", NAN, "expected text, found nan"),
    (1, "patient_id", "", "empty"),
    (3, "patient_id", "p-train001", "patient 'p-train001' is in split 'valid' and in 'train'"),
    (5, "study_id", None, "expected text"),
    (5, "study_id", "", "empty"),
    (0, "split", "validate", "'validate' is not one of 'train', 'valid', 'test'"),
    (0, "split", "", "'' is not one of"),
    (0, "view", "LATERAL", "'LATERAL' is not one of"),
    (0, "view", None, "expected text"),
    (4, "image", "", "empty"),
    (4, "image", "/images/a.png", "must be a path inside"),
    (4, "image", "images/../../a.png", "must be a path inside"),
    (4, "image", "images/none.png", "no file"),
    (4, "image", "images", "no file"),
    (4, "mask", "/etc/mask.png", "must be a path inside"),
    (4, "mask", "../mask.png", "must be a path inside"),
    (4, "mask", "masks/none.png", "no file"),
    (4, "mask", NAN, "expected text"),
    (6, "width", 0, "expected a positive whole number, found 0"),
    (6, "width", -44, "expected a positive whole number"),
    (6, "height", "40", "expected a positive whole number, found '40'"),
    (6, "height", 40.0, "expected a positive whole number"),
    (6, "height", NAN, "expected a positive whole number"),
    (6, "height", True, "expected a positive whole number"),
    (2, "findings", NAN, "expected text, found nan"),
    (2, "impression", None, "expected text"),
    (2, "source", 3.5, "expected text"),
    (2, "sentences", "no effusion", "expected a list of texts"),
    (2, "sentences", None, "expected a list of texts"),
    (2, "sentences", NAN, "expected a list of texts"),
    (2, "sentences", ["clear", 3], "expected a list of texts"),
    (2, "labels", None, "expected label names"),
    (2, "labels", {}, "expected label names"),
    (2, "labels", [1.0], "expected label names"),
    (2, "labels", NAN, "expected label names"),
    (2, "labels", {"Edema": 1.0}, "label names differ from row 0"),
    (0, "boxes", None, "expected a list"),
    (0, "boxes", NAN, "expected a list"),
    (0, "boxes", "none", "expected a list"),
    (0, "boxes", {"x": 1.0}, "expected a list"),
    (0, "boxes", [[1, 2, 3, 4]], "expected x, y, w, h and name"),
    (0, "boxes", [{"x": 1.0, "y": 1.0, "w": 2.0, "h": 2.0}], "expected x, y, w, h and name"),
    (0, "boxes", box(score=1.0), "expected x, y, w, h and name"),
    (0, "boxes", box(name=""), "expected four numbers and a name"),
    (0, "boxes", box(name=None), "expected four numbers and a name"),
    (0, "boxes", box(w=None), "expected four numbers and a name"),
    (0, "boxes", box(w="5"), "expected four numbers and a name"),
    (0, "boxes", box(w=0.0), "does not lie inside the 44 x 40 image"),
    (0, "boxes", box(h=-2.0), "does not lie inside"),
    (0, "boxes", box(x=-0.5), "does not lie inside"),
    (0, "boxes", box(y=-0.5), "does not lie inside"),
    (0, "boxes", box(x=39.5), "does not lie inside"),
    (0, "boxes", box(y=35.5), "does not lie inside"),
    (0, "boxes", box(h=NAN), "does not lie inside"),
    (0, "boxes", box(w=float("inf")), "does not lie inside"),
]


@pytest.mark.parametrize(("row", "column", "value", "problem"), CELLS)
def test_a_bad_cell_is_named(drawn, row, column, value, problem):
    root, table = drawn
    with pytest.raises(DatasetError) as caught:
        write(root, changed(table, row, column, value))
    message = str(caught.value)
    assert message.startswith(f"{root / 'studies.parquet'}: row {row}, column {column!r}: ")
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (2.0, "'Edema' is 2.0; use 1, 0, -1"),
        (0.5, "'Edema' is 0.5; use 1, 0, -1"),
        (float("inf"), "'Edema' is inf; use 1, 0, -1"),
        ("1", "'Edema' is '1', not a number"),
        ("", "'Edema' is '', not a number"),
        ([1.0], "'Edema' is [1.0], not a number"),
        (pd.NA, "'Edema' is <NA>, not a number"),
    ],
)
def test_a_bad_label_is_named(drawn, value, problem):
    root, table = drawn
    with pytest.raises(DatasetError) as caught:
        write(root, changed(table, 3, "labels", table["labels"][3] | {"Edema": value}))
    assert str(caught.value) == f"{root / 'studies.parquet'}: row 3, column 'labels': {problem}" + (
        " (uncertain) or null" if "use" in problem else ""
    )


def test_label_order_and_names_are_part_of_the_contract(drawn):
    root, table = drawn
    turned = dict(reversed(table["labels"][1].items()))
    with pytest.raises(DatasetError, match=r"row 1, column 'labels': label names differ from row 0"):
        write(root, changed(table, 1, "labels", turned))
    numbered = table.assign(labels=[{1: 0.0}] * len(table))
    with pytest.raises(DatasetError, match="label name 1 is not text"):
        write(root, numbered)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(drawn, column):
    root, table = drawn
    with pytest.raises(DatasetError, match=rf"studies\.parquet: column '{column}' is missing"):
        write(root, table.drop(columns=column))


def test_an_empty_table_is_refused(drawn):
    root, table = drawn
    with pytest.raises(DatasetError, match="holds no row"):
        write(root, table.iloc[:0])


def test_boxes_may_touch_the_edge(drawn):
    root, table = drawn
    write(root, changed(table, 0, "boxes", box(x=0.0, y=0, w=44.0, h=np.float64(40.0))))
    assert load_studies(root).table["boxes"][0][0]["h"] == 40.0


def test_nothing_is_replaced_when_writing_fails(drawn):
    root, table = drawn
    write(root, table)
    before = {path.name: path.read_bytes() for path in root.glob("*.*")}
    with pytest.raises(DatasetError):
        write(root, changed(table, 0, "width", 0))
    with pytest.raises(TypeError):
        write(root, changed(table, 0, "source", "new"), options={"path": root})
    assert {name: (root / name).read_bytes() for name in before} == before
    assert len(load_studies(root)) == 7


@pytest.fixture
def dataset(tmp_path):
    tiny_studies(tmp_path, **SIZES)
    return tmp_path


def test_a_changed_table_is_noticed(dataset):
    path = dataset / "studies.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 6), path)
    with pytest.raises(DatasetError, match=r"studies\.parquet: does not match the checksum in card\.json"):
        load_studies(dataset)


def test_a_truncated_table_is_noticed(dataset):
    path = dataset / "studies.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="does not match the checksum"):
        load_studies(dataset)


def reseal(root, content=None):
    """Put the table's present checksum into the card, as an adversary or a foreign tool would."""
    if content is not None:
        (root / "studies.parquet").write_bytes(content)
    card = json.loads((root / "card.json").read_text())
    card["table_sha256"] = hashlib.sha256((root / "studies.parquet").read_bytes()).hexdigest()
    (root / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_a_file_that_is_not_parquet(dataset, content):
    reseal(dataset, content)
    with pytest.raises(DatasetError, match=r"studies\.parquet: not a readable parquet file") as caught:
        load_studies(dataset)
    assert "\n" not in str(caught.value)


def test_a_table_cut_short_is_unreadable_even_with_its_checksum(dataset):
    reseal(dataset, (dataset / "studies.parquet").read_bytes()[:-100])
    with pytest.raises(DatasetError, match="not a readable parquet file"):
        load_studies(dataset)


@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        ("patient_id", ["p"] * 7, "patient 'p' is in split"),
        ("image_id", ["a"] * 7, "'a' appears twice"),
        ("width", [44.0] * 7, "expected a positive whole number"),
        ("mask", [None] * 7, "expected text"),
        ("image", ["../a.png"] * 7, "must be a path inside"),
        ("sentences", [["a"]] * 3 + [None] * 4, "expected a list of texts"),
        ("sentences", [["a"]] * 6 + [["b", None]], "expected a list of texts"),
        ("sentences", [[1]] * 7, "expected a list of texts"),
        ("sentences", ["a report"] * 7, "expected a list of texts"),
        ("labels", [{"Edema": 3.0}] * 7, "use 1, 0, -1"),
        ("labels", [{"Edema": NAN, "Nodule": 1}] * 6 + [{"Edema": 0.0, "Nodule": 2}], "'Nodule' is 2; use 1, 0, -1"),
        ("labels", [{"Edema": None}] * 6 + [{"Edema": "yes"}], "'Edema' is 'yes', not a number"),
        ("labels", [{"Edema": 1.0}] * 5 + [None] * 2, "expected label names with values"),
        ("labels", [["Edema"]] * 7, "expected label names with values"),
        ("boxes", [box(x=100.0)] * 7, "does not lie inside"),
        ("boxes", [[]] * 6 + [box() + box(w=60.0)], "does not lie inside"),
        ("boxes", [[]] * 6 + [None], "expected a list"),
        ("boxes", [box()[0]] * 7, "expected a list"),
        ("boxes", [[]] * 5 + [[{"x": 1.0, "y": 1.0}]] * 2, "expected x, y, w, h and name"),
    ],
)
def test_loading_validates_as_writing_does(dataset, column, values, problem):
    path = dataset / "studies.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values)), path)
    reseal(dataset)
    with pytest.raises(DatasetError, match=rf"studies\.parquet: row \d, column '{column}': .*{problem}"):
        load_studies(dataset)


def test_missing_files(dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"card\.json: missing, so .* is not a prepared dataset"):
        load_studies(tmp_path / "images")
    (dataset / "studies.parquet").unlink()
    with pytest.raises(DatasetError, match=r"studies\.parquet: missing; run the prepare script of tiny again"):
        load_studies(dataset)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda card: card.pop("licence"), "missing ['licence'], unknown []"),
        (lambda card: card.update(author="me"), "missing [], unknown ['author']"),
        (lambda card: card.update(restricted="no"), "'restricted' is 'no', expected bool"),
        (lambda card: card.update(restricted=None), "'restricted' is None, expected bool"),
        (lambda card: card.update(name=3), "'name' is 3, expected str"),
        (lambda card: card.update(counts=[3, 2, 2]), "'counts' is [3, 2, 2], expected dict"),
        (lambda card: card.update(table_sha256=None), "'table_sha256' is None, expected str"),
    ],
)
def test_a_bad_card_is_named(dataset, change, problem):
    path = dataset / "card.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))
    with pytest.raises(DatasetError) as caught:
        load_studies(dataset)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b"null"])
def test_a_card_that_is_no_json_object(dataset, content):
    (dataset / "card.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"card\.json: (not JSON|wrong keys)"):
        load_card(dataset)


def test_splits_and_selection(dataset):
    studies = load_studies(dataset)
    assert [len(studies.split(name)) for name in module.SPLITS] == [3, 2, 2]
    valid = studies.split("valid")
    assert valid.table["image_id"].tolist() == ["valid000", "valid001"]
    assert valid.table.index.tolist() == [0, 1]
    assert valid.image_path(1) == dataset / "images/valid001.png"
    assert valid.card == studies.card
    assert studies.select([6, 0]).table["image_id"].tolist() == ["test001", "train000"]
    assert studies.select(np.arange(7) == 4).table["image_id"].tolist() == ["valid001"]
    with pytest.raises(DatasetError, match="no split called 'validate'; use one of train, valid, test"):
        studies.split("validate")
    with pytest.raises(DatasetError, match=r"studies\.parquet: selection holds no image"):
        studies.select([])
    with pytest.raises(DatasetError, match="split 'test' holds no image"):
        valid.split("test")


def test_labels_as_an_array(dataset):
    studies = load_studies(dataset)
    found = studies.labels(["Pleural Effusion", "Atelectasis", "Edema"])
    assert found.dtype == np.float32
    # Patterns in order of drawing: effusion, edema, consolidation; effusion, edema; effusion, edema.
    expected = [[1, NAN, 0], [-1, NAN, 1], [0, NAN, 0], [1, NAN, 0], [-1, NAN, 1], [1, NAN, 0], [-1, NAN, 1]]
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))
    assert studies.labels([]).shape == (7, 0)
    assert studies.label_names[:3] == ("Atelectasis", "Cardiomegaly", "Consolidation")
    with pytest.raises(DatasetError, match="no label 'Nodule'; there are Atelectasis, "):
        studies.labels(["Edema", "Nodule"])
