"""The prepared dataset: the one thing on disk that the library reads (contract 1 of the architecture).

A prepared dataset is a folder with ``studies.parquet`` (one row an image), ``images/``, optionally ``masks/``,
and ``card.json``. The scripts in ``data_scripts/`` write it, everything else loads it. Both sides validate, and
say which row and column is wrong.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_origin

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SPLITS = ("train", "valid", "test")
VIEWS = ("PA", "AP", "lateral", "")
TABLE_FILE = "studies.parquet"
CARD_FILE = "card.json"

_TEXT_COLUMNS = (
    "image_id",
    "patient_id",
    "study_id",
    "split",
    "view",
    "image",
    "findings",
    "impression",
    "mask",
    "source",
)
COLUMNS = (
    "image_id",
    "patient_id",
    "study_id",
    "split",
    "view",
    "image",
    "width",
    "height",
    "findings",
    "impression",
    "sentences",
    "labels",
    "boxes",
    "mask",
    "source",
)
_BOX_TYPE = pa.struct([(name, pa.float64()) for name in ("x", "y", "w", "h")] + [("name", pa.string())])


DAMAGED = (OSError, SyntaxError, ValueError)
"""What Pillow raises for damaged pictures: a PNG with a broken part is a ``SyntaxError`` to it."""


class DatasetError(ValueError):
    """A prepared dataset breaks the contract; the message is one line that names file, row and column."""


@dataclass(frozen=True)
class Card:
    """What a prepared dataset is and how it was made; stored as ``card.json``.

    Attributes:
        name: Short name, for example ``"mimic_cxr"``.
        version: Version of the raw release.
        source: Where the raw data come from; ``"phantom"`` for synthetic data.
        licence: Licence or data-use agreement of the raw data.
        restricted: ``True`` when neither the data nor anything that shows them may be passed on.
        counts: Number of images per split.
        options: The preparation options that produced this table.
        table_sha256: SHA-256 of ``studies.parquet``, hexadecimal.
    """

    name: str
    version: str
    source: str
    licence: str
    restricted: bool
    counts: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    table_sha256: str = ""


@dataclass(frozen=True)
class Studies:
    """A loaded prepared dataset, or a part of one.

    Attributes:
        root: Folder that the ``image`` and ``mask`` columns are relative to.
        table: One row an image, columns ``COLUMNS``, index 0 ... N-1. Once loaded, ``sentences``, ``labels`` and
            ``boxes`` are Arrow columns: their cells read as lists and dicts, but take none (``astype(object)`` first).
        card: The dataset's card (of the whole dataset, also when this is one split of it).
    """

    root: Path
    table: pd.DataFrame
    card: Card

    def __len__(self) -> int:
        return len(self.table)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that the table holds, in stored order."""
        return tuple(self.table["labels"].iloc[0]) if len(self.table) else ()

    def split(self, name: str) -> "Studies":
        """Return the rows of one split.

        Raises:
            DatasetError: ``name`` is not a split, or the split is empty.
        """
        if name not in SPLITS:
            raise DatasetError(f"{self.root}: no split called {name!r}; use one of {', '.join(SPLITS)}")
        return self.select(self.table["split"].to_numpy() == name, what=f"split {name!r}")

    def select(self, keep: Sequence[int] | np.ndarray, *, what: str = "selection") -> "Studies":
        """Return the rows that a boolean mask or a list of row numbers names.

        Raises:
            DatasetError: nothing is selected.
        """
        rows = np.asarray(keep)
        part = self.table[rows] if rows.dtype == bool else self.table.iloc[rows]
        if part.empty:
            raise DatasetError(f"{self.root / TABLE_FILE}: {what} holds no image")
        return replace(self, table=part.reset_index(drop=True))

    def image_path(self, row: int) -> Path:
        """Path of the image of row number ``row``."""
        return self.root / self._images[row]

    @cached_property
    def _images(self) -> Sequence[str]:
        """The column itself: pandas takes a sixth of the time of reading an image to find it anew."""
        return self.table["image"].array

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Return labels as float32 ``(N, len(names))``: 1 present, 0 absent, -1 uncertain, NaN unknown.

        Raises:
            DatasetError: the dataset has no label of that name.
        """
        for name in names:
            if len(self.table) and name not in self.label_names:
                raise DatasetError(
                    f"{self.root / TABLE_FILE}: no label {name!r}; there are {', '.join(self.label_names)}"
                )
        stored = pa.array(self.table["labels"])
        values = [pc.struct_field(stored, name).cast(pa.float32()).to_numpy(zero_copy_only=False) for name in names]
        return np.array(values, dtype=np.float32).reshape(len(names), len(self.table)).T


def write_studies(
    root: Path,
    table: pd.DataFrame,
    *,
    name: str,
    version: str,
    source: str,
    licence: str,
    restricted: bool,
    options: Mapping[str, Any],
) -> Card:
    """Validate a table and write ``studies.parquet`` and ``card.json`` into ``root``.

    Both files are written under a temporary name and renamed, so that a reader never sees half a file. The same
    table gives the same bytes.

    Args:
        root: The dataset's folder; the images that the table names must lie in it already.
        table: One row an image with the columns ``COLUMNS``, in any order.
        name: Stored in the card, as are ``version``, ``source``, ``licence``, ``restricted`` and ``options``.
        version: Version of the raw release.
        source: Where the raw data come from.
        licence: Licence of the raw data.
        restricted: Whether outputs made from these data must stay on this computer.
        options: Preparation options, JSON-compatible.

    Returns:
        The card that was written.

    Raises:
        DatasetError: the table breaks the contract.
    """
    root = Path(root)
    where = root / TABLE_FILE
    _check_columns(table, where)
    table = table.loc[:, list(COLUMNS)].reset_index(drop=True)
    _check_rows(table, where)
    _check_files(table, root, where)
    label_names = list(table["labels"].iloc[0])
    schema = pa.schema(
        [(column, pa.string()) for column in _TEXT_COLUMNS]
        + [("width", pa.int64()), ("height", pa.int64()), ("sentences", pa.list_(pa.string()))]
        + [("labels", pa.struct([(label, pa.float64()) for label in label_names])), ("boxes", pa.list_(_BOX_TYPE))]
    )
    columns = []
    for column in COLUMNS:
        values = table[column].tolist()
        if column == "labels":
            values = [{key: _known(value) for key, value in row.items()} for row in values]
        columns.append(pa.array(values, type=schema.field(column).type))
    arrow = pa.table(columns, names=list(COLUMNS))
    root.mkdir(parents=True, exist_ok=True)
    temporary = where.with_suffix(".part")
    pq.write_table(arrow, temporary, compression="zstd")
    card = Card(
        name=name,
        version=version,
        source=source,
        licence=licence,
        restricted=restricted,
        counts={split: int((table["split"] == split).sum()) for split in SPLITS},
        options=dict(options),
        table_sha256=file_sha256(temporary),
    )
    card_part = (root / CARD_FILE).with_suffix(".part")
    card_part.write_text(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, where)
    os.replace(card_part, root / CARD_FILE)
    return card


def load_studies(root: str | Path) -> Studies:
    """Load and validate a prepared dataset.

    Raises:
        DatasetError: a file is missing or changed since it was written, or the table breaks the contract; the
            message names file, row and column.
    """
    root = Path(root)
    card = load_card(root)
    where = root / TABLE_FILE
    if not where.is_file():
        raise DatasetError(f"{where}: missing; run the prepare script of {card.name} again")
    if file_sha256(where) != card.table_sha256:
        raise DatasetError(f"{where}: does not match the checksum in {CARD_FILE}; run the prepare script again")
    try:
        table = pq.read_table(where).to_pandas(types_mapper=_keep_nested)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{where}: not a readable parquet file ({error})") from None
    pa.default_memory_pool().release_unused()  # what reading needed besides; with many processes a node it counts
    _check_columns(table, where)
    table = table.loc[:, list(COLUMNS)]
    _check_rows(table, where)
    return Studies(root=root, table=table, card=card)


def _keep_nested(kind: pa.DataType) -> pd.ArrowDtype | None:
    """Leave lists and structs as they are stored: as Python objects they take ten times the memory, and a minute."""
    return pd.ArrowDtype(kind) if pa.types.is_nested(kind) else None


def load_card(root: str | Path) -> Card:
    """Load ``card.json`` alone.

    Raises:
        DatasetError: it is missing, not JSON, or has missing or unknown keys.
    """
    path = Path(root) / CARD_FILE
    if not path.is_file():
        raise DatasetError(
            f"{path}: missing, so {root} is not a prepared dataset; make one with data_scripts/prepare_*.py"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not JSON ({error})") from None
    expected = {item.name for item in fields(Card)}
    if not isinstance(content, dict) or set(content) != expected:
        found = set(content) if isinstance(content, dict) else set()
        raise DatasetError(
            f"{path}: wrong keys (missing {sorted(expected - found)}, unknown {sorted(found - expected)})"
        )
    for item in fields(Card):
        kind = get_origin(item.type) or item.type
        if not isinstance(content[item.name], kind):
            raise DatasetError(f"{path}: {item.name!r} is {content[item.name]!r}, expected {kind.__name__}")
    return Card(**content)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_columns(table: pd.DataFrame, where: Path) -> None:
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise DatasetError(f"{where}: column {missing[0]!r} is missing")
    if table.empty:
        raise DatasetError(f"{where}: holds no row")


def _check_rows(table: pd.DataFrame, where: Path) -> None:
    def fail(row: int, column: str, problem: str) -> None:
        raise DatasetError(f"{where}: row {row}, column {column!r}: {problem}")

    for column in _TEXT_COLUMNS:
        for row, value in enumerate(table[column].tolist()):
            if not isinstance(value, str):
                fail(row, column, f"expected text, found {value!r}")
    for column in ("image_id", "patient_id", "study_id", "image"):
        for row, value in enumerate(table[column].tolist()):
            if not value:
                fail(row, column, "empty")
    for column, allowed in (("split", SPLITS), ("view", VIEWS)):
        for row, value in enumerate(table[column].tolist()):
            if value not in allowed:
                fail(row, column, f"{value!r} is not one of {', '.join(repr(name) for name in allowed)}")
    doubled = table["image_id"].duplicated()
    if doubled.any():
        row = int(np.flatnonzero(doubled)[0])
        fail(row, "image_id", f"{table['image_id'].iat[row]!r} appears twice")
    for column in ("image", "mask"):
        for row, value in enumerate(table[column].tolist()):
            if value and _leads_out(value):
                fail(row, column, f"{value!r} must be a path inside the dataset")
    for column in ("width", "height"):
        for row, value in enumerate(table[column].tolist()):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                fail(row, column, f"expected a positive whole number, found {value!r}")
    split_of: dict[str, str] = {}
    for row, (patient, split) in enumerate(zip(table["patient_id"], table["split"], strict=True)):
        if split_of.setdefault(patient, split) != split:
            fail(row, "patient_id", f"patient {patient!r} is in split {split!r} and in {split_of[patient]!r}")
    _check_sentences(table["sentences"], fail)
    _check_labels(table["labels"], fail)
    _check_boxes(table, fail)


def _check_sentences(column: pd.Series, fail: Callable[[int, str, str], None]) -> None:
    stored = _stored(column)
    texts = pa.types.is_list(stored.type) and pa.types.is_string(stored.type.value_type)
    if texts and not stored.null_count and not pc.list_flatten(stored).null_count:
        return
    for row, sentences in enumerate(column):
        if not isinstance(sentences, list | np.ndarray) or not all(isinstance(one, str) for one in sentences):
            fail(row, "sentences", "expected a list of texts")


def _check_labels(column: pd.Series, fail: Callable[[int, str, str], None]) -> None:
    stored = _stored(column)
    rows = range(len(column))
    if pa.types.is_struct(stored.type) and stored.type.num_fields and not stored.null_count:
        rows = np.flatnonzero(~_allowed_labels(stored))  # the names are the same in every row of a struct
    first = column.iat[0]
    for row in rows:
        labels = column.iat[row]
        if not isinstance(labels, Mapping) or not labels:
            fail(row, "labels", f"expected label names with values, found {labels!r}")
        if list(labels) != list(first):
            fail(row, "labels", f"label names differ from row 0: {list(labels)}")
        for label, value in labels.items():
            if not isinstance(label, str):
                fail(row, "labels", f"label name {label!r} is not text")
            if value is not None and not _is_number(value):
                fail(row, "labels", f"{label!r} is {value!r}, not a number")
            if _known(value) not in (None, 0.0, 1.0, -1.0):
                fail(row, "labels", f"{label!r} is {value!r}; use 1, 0, -1 (uncertain) or null")


def _allowed_labels(stored: pa.ChunkedArray) -> np.ndarray:
    """Return ``(N,)`` bool: all labels of the row are 1, 0, -1, NaN or null."""
    allowed = np.ones(len(stored), dtype=bool)
    for index in range(stored.type.num_fields):
        values = pc.struct_field(stored, [index])
        if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
            numbers = values.cast(pa.float64()).to_numpy()
            allowed &= np.isnan(numbers) | np.isin(numbers, (0.0, 1.0, -1.0))
        else:
            allowed &= values.is_null().to_numpy()
    return allowed


def _check_boxes(table: pd.DataFrame, fail: Callable[[int, str, str], None]) -> None:
    column, widths, heights = table["boxes"], table["width"].tolist(), table["height"].tolist()
    stored = _stored(column)
    rows = range(len(column))
    if pa.types.is_list(stored.type) and not stored.null_count:
        rows = np.flatnonzero(pc.list_value_length(stored).to_numpy())  # most datasets have none
    for row in rows:
        boxes, width, height = column.iat[row], widths[row], heights[row]
        if not isinstance(boxes, list | np.ndarray):
            fail(row, "boxes", f"expected a list, found {boxes!r}")
        for box in boxes:
            if not isinstance(box, Mapping) or set(box) != {"x", "y", "w", "h", "name"}:
                fail(row, "boxes", f"expected x, y, w, h and name, found {box!r}")
            if not isinstance(box["name"], str) or not box["name"] or not all(_is_number(box[key]) for key in "xywh"):
                fail(row, "boxes", f"expected four numbers and a name, found {box!r}")
            x, y, w, h = (float(box[key]) for key in "xywh")
            if not (w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= width + 1e-6 and y + h <= height + 1e-6):
                fail(row, "boxes", f"box {(x, y, w, h)} does not lie inside the {width} x {height} image")


def _stored(column: pd.Series) -> pa.ChunkedArray:
    """Return a column as Arrow holds it; one of Python objects, of which nothing is known yet, as an empty one."""
    if not isinstance(column.dtype, pd.ArrowDtype):
        return pa.chunked_array([], type=pa.null())
    stored = pa.array(column)
    return stored if isinstance(stored, pa.ChunkedArray) else pa.chunked_array([stored])


def _leads_out(path: str) -> bool:
    """Whether a path is absolute or climbs; the cheap test first, for there are two paths in every row."""
    return (path[0] in "/\\" or ":" in path or ".." in path) and (Path(path).is_absolute() or ".." in Path(path).parts)


def _check_files(table: pd.DataFrame, root: Path, where: Path) -> None:
    for column in ("image", "mask"):
        for row, value in enumerate(table[column].tolist()):
            if value and not (root / value).is_file():
                raise DatasetError(f"{where}: row {row}, column {column!r}: no file {root / value}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def _known(value: Any) -> float | None:
    """Return a label as a float, or ``None`` where it is unknown (null or NaN)."""
    return None if value is None or value != value else float(value)
