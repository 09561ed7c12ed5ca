"""The two ends of a prepare script: reading the tables of a raw release, and writing the prepared dataset.

A prepare script turns a raw dataset into a list of :class:`data_scripts.candidates.Candidate` (one an image) and
notes in a :class:`data_scripts.ledger.Ledger` every source row that it leaves out, with the reason.
:func:`build_dataset` converts the images, writes the prepared dataset and checks that rows in = rows out + rows
dropped.
"""

import csv
import io
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_scripts.candidates import Candidate
from data_scripts.command_line import Settings
from data_scripts.conversion import make_rows
from data_scripts.images import JPEG_QUALITY
from data_scripts.journal import Journal, write_text
from data_scripts.ledger import DROPPED_FILE, Drop, Ledger, Summary, check_any, check_strict
from data_scripts.phantom import PHANTOM_FILE
from data_scripts.selection import apply_limit, drop_duplicates, separate_patients
from mgca_lib.data.studies import DatasetError, write_studies
from mgca_lib.data.tasks import CHEXPERT_LABELS


@dataclass(frozen=True)
class Origin:
    """Where a dataset comes from, for its card.

    Attributes:
        name: Short name.
        version: Version of the release.
        source: Where it was published.
        licence: Licence or data-use agreement.
        restricted: Whether neither the data nor anything that shows them may be passed on.
    """

    name: str
    version: str
    source: str
    licence: str
    restricted: bool = True


def check_folder(raw: str | Path, *, what: str) -> Path:
    """Return the folder that the user named.

    Raises:
        DatasetError: it is a file or missing.
    """
    raw = Path(raw)
    if not raw.is_dir():
        raise DatasetError(
            f"{raw}: {'is a file, not a folder' if raw.exists() else 'no such folder'}; --raw wants {what}"
        )
    return raw


def find_root(raw: str | Path, marker: str, *, inside: Sequence[str] = (), what: str) -> Path:
    """Find the folder of a raw dataset.

    Args:
        raw: What the user named: the dataset's folder or one above it.
        marker: Pattern of a file that stands in the dataset's folder.
        inside: Patterns of folders below ``raw`` to try next.
        what: Name of the dataset, for the message.

    Raises:
        DatasetError: no folder, or more than one, holds the marker.
    """
    raw = check_folder(raw, what=what)
    if any(raw.glob(marker)):
        return raw
    found = sorted({folder for pattern in inside for folder in raw.glob(pattern) if any(folder.glob(marker))})
    if not found:
        raise DatasetError(f"{raw}: holds no {marker}, so it is not {what}")
    if len(found) > 1:
        raise DatasetError(
            f"{raw}: holds {what} more than once ({found[0].name}, {found[1].name}); name one with --raw"
        )
    return found[0]


def find_table(root: Path, pattern: str) -> Path:
    """Find the one file that matches ``pattern`` or ``pattern`` + ``.gz``; of both, the plain file.

    Raises:
        DatasetError: there is none, or several.
    """
    found = sorted(root.glob(pattern)) or sorted(root.glob(pattern + ".gz"))
    if not found:
        raise DatasetError(f"{root / pattern}: no such file (nor {pattern}.gz)")
    if len(found) > 1:
        raise DatasetError(f"{root}: {found[0].name} and {found[1].name} both match {pattern}; keep one")
    return found[0]


def read_table(path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()) -> pd.DataFrame:
    """Read a csv file as text.

    Args:
        path: Plain or gzip-compressed csv file in UTF-8, with or without byte-order mark.
        columns: Columns that must be there.
        optional: Columns that may be missing and are then empty.

    Returns:
        The named columns, stripped text with ``""`` for blanks, plus ``row``, the line of the file that the row
        begins on.

    Raises:
        DatasetError: the file is missing, damaged, not such a csv file, lacks a column or has no rows.
    """
    try:
        with warnings.catch_warnings():
            # Where the first row is longer than the header, pandas cuts all rows and merely warns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False, index_col=False
            )
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except pd.errors.EmptyDataError:
        raise DatasetError(f"{path}: is empty") from None
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except pd.errors.ParserWarning:
        raise DatasetError(f"{path}: line 2 has more cells than the header; quote cells that hold commas") from None
    except (pd.errors.ParserError, OSError, EOFError, zlib.error, ValueError) as error:
        raise DatasetError(f"{path}: is not a readable csv file ({' '.join(str(error).split())})") from None
    table.columns = [str(column).strip() for column in table.columns]
    for column in columns:
        if column not in table.columns:
            raise DatasetError(f"{path}: column {column!r} is missing; there are {', '.join(table.columns)}")
    table = table.fillna("")
    breaks = np.zeros(len(table), dtype=np.int64)  # a quoted cell may fill several lines
    for number in range(table.shape[1]):
        breaks += table.iloc[:, number].str.count("\n").to_numpy(dtype=np.int64)
    line = np.arange(len(table)) + 2 + breaks.cumsum() - breaks
    for column in optional:
        if column not in table.columns:
            table[column] = ""
    wanted = [*columns, *optional]
    table = table[wanted].apply(lambda values: values.str.strip()).assign(row=line)
    table = table[(table[wanted] != "").any(axis=1)].reset_index(drop=True)
    if table.empty:
        raise DatasetError(f"{path}: has a header but no rows")
    for column in wanted:
        if (damaged := table["row"][table[column].str.contains("\0", regex=False)]).size:
            raise _cut_off(path, damaged.iat[0])
    return table


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a text file that are not blank, with their line numbers counted from 1.

    Raises:
        DatasetError: the file is missing, damaged, not UTF-8, or has no line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None
    if "\0" in text:
        raise _cut_off(path, text[: text.index("\0")].count("\n") + 1)
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise DatasetError(f"{path}: is empty")
    return lines


def parse_label(text: str) -> float | None:
    """Return a CheXpert label: 1, 0, -1 (uncertain), or ``None`` for blank.

    Raises:
        ValueError: it is something else.

    >>> parse_label("1.0"), parse_label("-1"), parse_label("")
    (1.0, -1.0, None)
    """
    if text == "":
        return None
    value = float(text)
    if value not in (1.0, 0.0, -1.0):
        raise ValueError(f"{text} is not 1, 0, -1 or blank")
    return value


def read_labels(record: Mapping[str, str]) -> dict[str, float | None]:
    """Return the 14 CheXpert labels of a row.

    Raises:
        ValueError: a label is out of range; the message names it.
    """
    labels = {}
    for name in CHEXPERT_LABELS:
        try:
            labels[name] = parse_label(record[name])
        except ValueError:
            raise ValueError(f"{name} is {record[name]!r}, not 1, 0, -1 or blank") from None
    return labels


def is_safe_name(text: str) -> bool:
    """Whether an id can be part of a path: no separator, no leading dot, not empty."""
    return bool(text) and not text.startswith(".") and not set(text) & set('/\\:*?"<>|\0')


def build_dataset(
    candidates: Sequence[Candidate],
    ledger: Ledger,
    *,
    root: Path,
    phantom: bool,
    out: str | Path,
    origin: Origin,
    options: Mapping[str, Any],
    settings: Settings,
) -> Summary:
    """Convert the images and write the prepared dataset.

    Args:
        candidates: Images to keep, in the order of the final table.
        ledger: The rows read and dropped so far.
        root: Raw folder, for messages.
        phantom: Whether the raw data are synthetic, see :func:`is_phantom`.
        out: Folder of the prepared dataset.
        origin: For the card of real data; the card of phantoms says so instead.
        options: The script's own options, for the card.
        settings: Shared settings.

    Raises:
        DatasetError: nothing is left, ``out`` belongs to something else, or strict mode found a fault.
    """
    started = time.perf_counter()
    out = Path(out)
    candidates = drop_duplicates(separate_patients(candidates, ledger), ledger)
    candidates = apply_limit(candidates, ledger, settings.limit)
    check_strict(ledger, strict=settings.strict)
    check_any(candidates, ledger, root)
    journal = Journal(out, origin.name, settings)
    try:
        rows, counts = make_rows(candidates, ledger, journal, settings)
    finally:
        journal.close()
    check_strict(ledger, strict=settings.strict)
    check_any(rows, ledger, root)
    used = {row["image_id"] for row in rows}
    rows_out = sum(len(candidate.rows) for candidate in candidates if candidate.image_id in used)
    if ledger.rows_in != rows_out + len(ledger.drops):
        raise AssertionError(f"{ledger.rows_in} rows in, {rows_out} out, {len(ledger.drops)} dropped: a row was lost")
    dropped = Counter(drop.reason for drop in ledger.drops)
    _write_dropped(out / DROPPED_FILE, ledger.drops)
    card = write_studies(
        out,
        pd.DataFrame(rows),
        name=origin.name,
        version="phantom" if phantom else origin.version,
        source="phantom" if phantom else origin.source,
        licence="Apache-2.0 (synthetic data)" if phantom else origin.licence,
        restricted=origin.restricted and not phantom,
        options={
            **options,
            "size": settings.size,
            "image_format": settings.image_format,
            "jpeg_quality": JPEG_QUALITY if settings.image_format == "jpeg" else None,
            "limit": settings.limit,
            "rows_in": ledger.rows_in,
            "rows_out": rows_out,
            "dropped": dict(sorted(dropped.items())),
        },
    )
    journal.finish([row["image"] for row in rows])
    return Summary(
        name=origin.name,
        out=out,
        rows_in=ledger.rows_in,
        rows_out=rows_out,
        images=card.counts,
        dropped=dict(dropped),
        by_design=frozenset(drop.reason for drop in ledger.drops if not drop.faulty),
        converted=counts["converted"],
        reused=counts["reused"],
        seconds=time.perf_counter() - started,
        restricted=card.restricted,
        notes=tuple(ledger.notes),
    )


def is_phantom(folder: Path) -> bool:
    """Whether a dataset's own folder holds ``PHANTOM.json``, which marks synthetic data.

    It must be the folder that the tables lie in: what lies inside a folder above may have been replaced by the real
    release.
    """
    return (folder / PHANTOM_FILE).is_file()


def _cut_off(path: Path, row: int) -> DatasetError:
    """Return the error for a text file with zero bytes, as a copy that broke off leaves them."""
    return DatasetError(f"{path}: row {row}: holds zero bytes, so it is damaged; copy or load it again")


def _write_dropped(path: Path, drops: Sequence[Drop]) -> None:
    stream = io.StringIO()
    # Not by pandas: file names in another encoding are no text to it.
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(field.name for field in fields(Drop))
    writer.writerows(astuple(drop) for drop in drops)
    write_text(path, stream.getvalue())
