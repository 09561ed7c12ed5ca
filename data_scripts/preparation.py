"""What the prepare scripts share: reading tables, converting images, counting drops, restarting, reporting.

A prepare script turns a raw dataset into a list of :class:`Candidate` (one an image) and notes in a :class:`Ledger`
every source row that it leaves out, with the reason. :func:`build_dataset` converts the images, writes the prepared
dataset and checks that rows in = rows out + rows dropped.

Restart: each finished image is noted in ``preparation/journal.jsonl`` with its checksum. A later run reuses what is
whole and belongs to an unchanged source file, so a run that was killed and started again ends with the same files
as one that was not. Images are converted in threads, not processes: the codecs release the interpreter lock, nothing
has to be imported anew, and nothing outlives a kill.
"""

import argparse
import json
import os
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_scripts.images import (
    JPEG_QUALITY,
    ImageError,
    Radiograph,
    read_radiograph,
    resize_longer_side,
    write_image,
)
from mgca_lib.data.studies import CARD_FILE, SPLITS, TABLE_FILE, DatasetError, write_studies
from mgca_lib.data.tasks import CHEXPERT_LABELS

DROPPED_FILE = "dropped.csv"
STATE_FOLDER = "preparation"
IMAGE_FOLDER = "images"
PHANTOM_FILE = "PHANTOM.json"
FRONTAL_VIEWS = ("AP", "PA")
FORMATS = {"jpeg": ".jpg", "png": ".png"}
DECODING = 1  # raised when the same file would give other pixels


class StrictError(DatasetError):
    """Rows were dropped although ``strict`` forbids it."""


@dataclass(frozen=True)
class Settings:
    """What all prepare scripts can be told.

    Attributes:
        size: Longer side of the stored images, in pixels.
        image_format: ``"jpeg"`` (quality 95) or ``"png"`` (lossless).
        workers: Threads that convert images; ``None`` uses every processor, at most 16.
        strict: Fail when any row is dropped as faulty.
        limit: Keep at most so many images of each split; ``None`` keeps all.
        overwrite: Discard images that were made with other settings instead of refusing.
        quiet: Show no progress bar.
    """

    size: int = 256
    image_format: str = "jpeg"
    workers: int | None = None
    strict: bool = False
    limit: int | None = None
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 8192:
            raise DatasetError(f"--size {self.size}: use 16 to 8192 pixels")
        if self.image_format not in FORMATS:
            raise DatasetError(f"--image-format {self.image_format}: use one of {', '.join(FORMATS)}")
        if self.workers is not None and self.workers < 1:
            raise DatasetError(f"--workers {self.workers}: use at least 1")
        if self.limit is not None and self.limit < 1:
            raise DatasetError(f"--limit {self.limit}: use at least 1")


@dataclass(frozen=True)
class Drop:
    """One source row that is not in the prepared dataset.

    Attributes:
        file: File that holds the row, relative to the raw folder.
        row: Its line, counted as an editor does (the header is line 1).
        source: What the row is about: an image path or an id.
        reason: Why, in words that are the same for all rows with this reason.
        detail: What is special to this row.
        faulty: ``False`` for rows left out by design (lateral views, ``limit``).
    """

    file: str
    row: int
    source: str
    reason: str
    detail: str = ""
    faulty: bool = True

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.file}, row {self.row}: {self.source}: {self.reason}{detail}"


@dataclass
class Candidate:
    """An image on its way into the prepared dataset.

    Attributes:
        image_id: Unique id.
        patient_id: Patient.
        study_id: Examination.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        path: The raw image.
        source: The raw image relative to the raw folder.
        file: Table that lists it.
        rows: Lines of that table that speak of it.
        stored: Stored image without suffix, relative to ``images/``.
        labels: Label values.
        view: ``"AP"``, ``"PA"`` or ``""``.
        findings: Findings section.
        impression: Impression section.
        sentences: Cleaned sentences.
        boxes: ``x, y, w, h`` in raw pixels and ``name``.
    """

    image_id: str
    patient_id: str
    study_id: str
    split: str
    path: Path
    source: str
    file: str
    rows: tuple[int, ...]
    stored: str
    labels: Mapping[str, float | None]
    view: str = ""
    findings: str = ""
    impression: str = ""
    sentences: Sequence[str] = ()
    boxes: Sequence[Mapping[str, Any]] = ()


@dataclass
class Ledger:
    """Counts source rows, so that none is lost silently.

    Attributes:
        rows_in: Rows of the table (or tables) that list the images.
        drops: Rows left out so far.
        notes: Remarks for the summary.
    """

    rows_in: int = 0
    drops: list[Drop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, file: str, row: int, source: str, reason: str, detail: str = "", *, faulty: bool = True) -> None:
        """Note a row that is left out."""
        self.drops.append(Drop(file, row, source, reason, detail, faulty))

    def drop_candidate(self, candidate: Candidate, reason: str, detail: str = "", *, faulty: bool = True) -> None:
        """Note all rows of a candidate as left out."""
        for row in candidate.rows:
            self.drop(candidate.file, row, candidate.source, reason, detail, faulty=faulty)


@dataclass(frozen=True)
class Summary:
    """What a preparation did; printed as a table.

    Attributes:
        name: Dataset.
        out: Folder of the prepared dataset.
        rows_in: Source rows read.
        rows_out: Source rows that the prepared dataset holds.
        images: Images per split.
        dropped: Rows per reason.
        by_design: Reasons among ``dropped`` that are no fault of the data.
        converted: Images decoded and written by this run.
        reused: Images found finished from an earlier run.
        seconds: Duration.
        restricted: Whether the data must stay on this computer.
        notes: Remarks.
    """

    name: str
    out: Path
    rows_in: int
    rows_out: int
    images: Mapping[str, int]
    dropped: Mapping[str, int]
    by_design: frozenset[str]
    converted: int
    reused: int
    seconds: float
    restricted: bool
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {self.images[split]:,}" for split in SPLITS)
        lines = [
            f"{self.name}: {sum(self.images.values()):,} images in {self.out} ({splits})",
            f"  {'rows in':<52}{self.rows_in:>10,}",
        ]
        for reason, count in sorted(self.dropped.items(), key=lambda item: (-item[1], item[0])):
            mark = " (by design)" if reason in self.by_design else ""
            lines.append(f"  {'- ' + reason + mark:<52}{count:>10,}")
        lines.append(f"  {'rows out':<52}{self.rows_out:>10,}")
        speed = f", {self.converted / self.seconds:,.0f} a second" if self.converted and self.seconds > 0 else ""
        lines.append(
            f"  {self.converted:,} images converted, {self.reused:,} reused, {self.seconds:,.1f} s{speed}; "
            f"every dropped row is in {self.out / DROPPED_FILE}"
        )
        if self.restricted:
            lines.append("  restricted: neither these images nor anything that shows them may be passed on")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


@dataclass(frozen=True)
class Origin:
    """Where a dataset comes from, for its card.

    Attributes:
        name: Short name.
        version: Version of the release.
        source: Where it was published.
        licence: Licence or data-use agreement.
    """

    name: str
    version: str
    source: str
    licence: str


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
    raw = Path(raw)
    if not raw.is_dir():
        raise DatasetError(
            f"{raw}: {'is a file, not a folder' if raw.exists() else 'no such folder'}; --raw wants {what}"
        )
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
        The named columns, stripped text with ``""`` for blanks, plus ``row``, the line in the file.

    Raises:
        DatasetError: the file is missing, not such a csv file, lacks a column or has no rows.
    """
    try:
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
    except (pd.errors.ParserError, OSError, EOFError, zlib.error, ValueError) as error:
        raise DatasetError(f"{path}: is not a readable csv file ({' '.join(str(error).split())})") from None
    table.columns = [str(column).strip() for column in table.columns]
    for column in columns:
        if column not in table.columns:
            raise DatasetError(f"{path}: column {column!r} is missing; there are {', '.join(table.columns)}")
    table = table.fillna("")
    for column in optional:
        if column not in table.columns:
            table[column] = ""
    wanted = [*columns, *optional]
    table = table[wanted].apply(lambda values: values.str.strip()).assign(row=np.arange(len(table)) + 2)
    table = table[(table[wanted] != "").any(axis=1)].reset_index(drop=True)
    if table.empty:
        raise DatasetError(f"{path}: has a header but no rows")
    return table


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a text file that are not blank, with their line numbers counted from 1.

    Raises:
        DatasetError: the file is missing, not UTF-8, or has no line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None
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


def split_patients(patients: Iterable[str], sizes: Sequence[int], *, seed: int) -> list[set[str]]:
    """Draw disjoint groups of patients.

    Args:
        patients: Patient ids; order and repetition do not matter.
        sizes: Size of each group.
        seed: Seed of the draw.

    Returns:
        One set per size, and last the patients that are left.
    """
    names = sorted(set(patients))
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    groups, start = [], 0
    for size in sizes:
        groups.append(set(order[start : start + size]))
        start += size
    return [*groups, set(order[start:])]


def separate_patients(candidates: Sequence[Candidate], ledger: Ledger) -> list[Candidate]:
    """Drop images whose patient is also in a split that matters more: test before valid before train."""
    rank = {"test": 0, "valid": 1, "train": 2}
    best: dict[str, str] = {}
    for candidate in candidates:
        held = best.setdefault(candidate.patient_id, candidate.split)
        if rank[candidate.split] < rank[held]:
            best[candidate.patient_id] = candidate.split
    kept = []
    for candidate in candidates:
        if candidate.split == best[candidate.patient_id]:
            kept.append(candidate)
        else:
            other = best[candidate.patient_id]
            ledger.drop_candidate(
                candidate, "patient is also in a held-out split", f"patient {candidate.patient_id} is in {other}"
            )
    return kept


def apply_limit(candidates: Sequence[Candidate], ledger: Ledger, limit: int | None) -> list[Candidate]:
    """Keep the first ``limit`` images of each split."""
    if limit is None:
        return list(candidates)
    counts: Counter[str] = Counter()
    kept = []
    for candidate in candidates:
        counts[candidate.split] += 1
        if counts[candidate.split] <= limit:
            kept.append(candidate)
        else:
            ledger.drop_candidate(candidate, "beyond --limit", faulty=False)
    return kept


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
    candidates = _unique(separate_patients(candidates, ledger), ledger)
    candidates = apply_limit(candidates, ledger, settings.limit)
    _check_strict(ledger, settings)
    _check_any(candidates, ledger, root)
    state = _State(out, origin.name, settings)
    try:
        rows, counts = _make_rows(candidates, ledger, state, settings)
    finally:
        state.close()
    _check_strict(ledger, settings)
    _check_any(rows, ledger, root)
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
        restricted=not phantom,
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
    state.finish([row["image"] for row in rows])
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


def is_phantom(*folders: Path) -> bool:
    """Whether one of the dataset's own folders holds ``PHANTOM.json``, which marks synthetic data.

    A folder above several datasets must not be asked: one of them may have been replaced by the real one.
    """
    return any((folder / PHANTOM_FILE).is_file() for folder in folders)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every prepare script has."""
    parser.add_argument("--raw", required=True, metavar="DIR", help="folder of the original dataset")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the prepared dataset")
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="longer side of the images (default 256)")
    parser.add_argument(
        "--image-format", choices=tuple(FORMATS), default="jpeg", help="jpeg at quality 95 (default) or lossless png"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads (default: all processors, at most 16)")
    parser.add_argument("--limit", type=int, metavar="N", help="keep at most N images of each split")
    parser.add_argument("--strict", action="store_true", help="fail (exit code 1) when a row has to be dropped")
    parser.add_argument(
        "--overwrite", action="store_true", help="discard images that were made with other settings and start again"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def run_command(
    parser: argparse.ArgumentParser, prepare: Callable[..., Summary], argv: Sequence[str] | None = None
) -> int:
    """Run a prepare script from the command line.

    Returns:
        Exit code: 0 done, 1 strict mode found a fault, 2 unusable input or arguments, 130 interrupted.
    """
    try:
        arguments = vars(parser.parse_args(argv))
    except SystemExit as stop:
        return int(stop.code or 0)
    out = Path(arguments["out"])
    try:
        print(prepare(arguments.pop("raw"), arguments.pop("out"), **arguments))
    except StrictError as error:
        print(f"strict: {error}", file=sys.stderr)
        return 1
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        name = error.filename or out
        print(f"error: {name}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on where it stopped (finished images are in {out})", file=sys.stderr)
        return 130
    return 0


class _State:
    """What is known in ``out`` of earlier runs: the settings and the journal of finished images."""

    def __init__(self, out: Path, name: str, settings: Settings) -> None:
        self.out = out
        self.folder = out / STATE_FOLDER
        self.suffix = FORMATS[settings.image_format]
        self.size = settings.size
        wanted = {
            "dataset": name,
            "size": settings.size,
            "image_format": settings.image_format,
            "decoding": DECODING,
        }
        self._check(wanted, overwrite=settings.overwrite)
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_text(self.folder / "settings.json", json.dumps(wanted, indent=2) + "\n")
        self.journal: dict[str, dict[str, Any]] = dict(self._read_journal())
        self._stream = (self.folder / "journal.jsonl").open("a", encoding="utf-8")
        # A run that was killed may have left half a line; what follows must not be glued to it.
        self._stream.write("\n")

    def _check(self, wanted: Mapping[str, Any], *, overwrite: bool) -> None:
        path = self.folder / "settings.json"
        if self.out.exists() and not self.out.is_dir():
            raise DatasetError(f"{self.out}: is a file; --out wants a folder")
        if not path.is_file():
            others = sorted(item.name for item in self.out.iterdir()) if self.out.is_dir() else []
            others = [name for name in others if name != STATE_FOLDER]
            if others:
                raise DatasetError(
                    f"{self.out}: holds {others[0]} and was not made by a prepare script; name an empty or new folder"
                )
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            found = {}
        if not isinstance(found, dict):
            found = {}
        if found.get("dataset", wanted["dataset"]) != wanted["dataset"]:
            raise DatasetError(f"{self.out}: holds the dataset {found['dataset']}; name another folder with --out")
        changed = [key for key in wanted if found.get(key) != wanted[key]]
        if changed and not overwrite:
            key = changed[0]
            raise DatasetError(
                f"{self.out}: its images were made with {key} {found.get(key)}, now it is {wanted[key]}; "
                "add --overwrite to make them anew, or name another folder with --out"
            )
        if changed:
            for name in (CARD_FILE, TABLE_FILE):
                (self.out / name).unlink(missing_ok=True)
            (self.folder / "journal.jsonl").unlink(missing_ok=True)

    def _read_journal(self) -> Iterator[tuple[str, dict[str, Any]]]:
        path = self.folder / "journal.jsonl"
        if not path.is_file():
            return
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                yield entry["image"], entry
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill; the image is made again

    def finished(self, image: str, stamp: Sequence[int]) -> dict[str, Any] | None:
        """Return the journal entry of an image that is whole and up to date."""
        entry = self.journal.get(image)
        if entry is None or entry.get("stamp") != list(stamp):
            return None
        try:
            content = (self.out / image).read_bytes()
        except OSError:
            return None
        return entry if [len(content), zlib.crc32(content)] == entry.get("check") else None

    def add(self, entry: dict[str, Any]) -> None:
        """Note a finished image."""
        self.journal[entry["image"]] = entry
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()

    def finish(self, images: Sequence[str]) -> None:
        """Remove what belongs to no row, and write the journal anew in table order."""
        self.close()
        lines = [json.dumps(self.journal[image]) + "\n" for image in images]
        _write_text(self.folder / "journal.jsonl", "".join(lines))
        wanted = set(images)
        for folder, _, files in os.walk(self.out / IMAGE_FOLDER, topdown=False):
            for name in files:
                path = Path(folder, name)
                if path.relative_to(self.out).as_posix() not in wanted:
                    path.unlink()
            if not any(Path(folder).iterdir()):
                Path(folder).rmdir()

    def close(self) -> None:
        """Close the journal; twice does no harm."""
        self._stream.close()


def _make_rows(
    candidates: Sequence[Candidate], ledger: Ledger, state: _State, settings: Settings
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Convert all images; return the rows of the table and how many images were converted and reused."""
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for candidate, (result, reused) in zip(candidates, _convert(candidates, state, settings), strict=True):
        if isinstance(result, str):
            reason, _, detail = result.partition("\n")
            ledger.drop_candidate(candidate, reason, detail)
            continue
        counts["reused" if reused else "converted"] += 1
        problem = _box_problem(candidate, result)
        if problem:
            ledger.drop_candidate(candidate, "box outside the image", problem)
        elif result["view"] not in ("", *FRONTAL_VIEWS):
            ledger.drop_candidate(candidate, f"view {result['view']}", faulty=False)
        else:
            rows.append(_table_row(candidate, result))
    return rows, counts


def _convert(
    candidates: Sequence[Candidate], state: _State, settings: Settings
) -> Iterator[tuple[dict[str, Any] | str, bool]]:
    """Yield per candidate the journal entry, or reason, newline, detail of a failure; and whether it was reused."""
    workers = settings.workers or min(16, os.cpu_count() or 1)
    waiting = iter(candidates)
    bar = tqdm(total=len(candidates), unit="image", desc="images", disable=True if settings.quiet else None)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool, bar:
        warnings.simplefilter("ignore")  # codecs remark on harmless oddities of single files
        try:
            # A short queue: results come in table order, and an interrupt has little to wait for.
            queue = [pool.submit(_convert_one, item, state) for item in islice(waiting, 4 * workers)]
            while queue:
                entry, reused = queue.pop(0).result()
                queue += [pool.submit(_convert_one, item, state) for item in islice(waiting, 1)]
                if isinstance(entry, dict) and not reused:
                    state.add(entry)
                bar.update()
                yield entry, reused
        finally:
            pool.shutdown(cancel_futures=True)


def _convert_one(candidate: Candidate, state: _State) -> tuple[dict[str, Any] | str, bool]:
    image = f"{IMAGE_FOLDER}/{candidate.stored}{state.suffix}"
    try:
        status = candidate.path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        entry = state.finished(image, stamp)
        if entry is not None:
            return entry, True
        radiograph: Radiograph = read_radiograph(candidate.path, longer_side=state.size)
    except FileNotFoundError:
        return "image file missing", False
    except ImageError as error:
        return f"image unreadable\n{error}", False
    except OSError as error:
        return f"image unreadable\n{error.strerror or error}", False
    pixels = resize_longer_side(radiograph.pixels, state.size)
    path = state.out / image
    # From here on the table of an earlier run need not fit the images; without its card it is not loaded.
    (state.out / CARD_FILE).unlink(missing_ok=True)
    write_image(path, pixels)
    content = path.read_bytes()
    return {
        "image": image,
        "stamp": stamp,
        "check": [len(content), zlib.crc32(content)],
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "raw_width": radiograph.width,
        "raw_height": radiograph.height,
        "view": radiograph.view,
    }, False


def _box_problem(candidate: Candidate, entry: Mapping[str, Any]) -> str:
    for box in candidate.boxes:
        x, y, w, h = (box[key] for key in "xywh")
        width, height = entry["raw_width"], entry["raw_height"]
        if x < 0 or y < 0 or x + w > width or y + h > height:
            return f"box {x:g}, {y:g}, {w:g}, {h:g} in an image of {width} x {height}"
    return ""


def _table_row(candidate: Candidate, entry: Mapping[str, Any]) -> dict[str, Any]:
    across, down = entry["width"] / entry["raw_width"], entry["height"] / entry["raw_height"]
    boxes = []
    for box in candidate.boxes:
        # The far edge is limited because 1024 * (256 / 1024) need not be 256 exactly for every size.
        x, y = box["x"] * across, box["y"] * down
        w, h = min(box["w"] * across, entry["width"] - x), min(box["h"] * down, entry["height"] - y)
        boxes.append({"x": x, "y": y, "w": w, "h": h, "name": box["name"]})
    return {
        "image_id": candidate.image_id,
        "patient_id": candidate.patient_id,
        "study_id": candidate.study_id,
        "split": candidate.split,
        "view": candidate.view or entry["view"],
        "image": entry["image"],
        "width": entry["width"],
        "height": entry["height"],
        "findings": candidate.findings,
        "impression": candidate.impression,
        "sentences": list(candidate.sentences),
        "labels": dict(candidate.labels),
        "boxes": boxes,
        "mask": "",
        "source": candidate.source,
    }


def _unique(candidates: Sequence[Candidate], ledger: Ledger) -> list[Candidate]:
    """Drop images whose id, or whose stored file on a file system that ignores case, was there before."""
    seen: dict[str, Candidate] = {}
    kept = []
    for candidate in candidates:
        for key in (candidate.image_id, candidate.stored.lower()):
            if key in seen:
                first = seen[key]
                ledger.drop_candidate(candidate, "duplicate id", f"first in {first.file}, row {first.rows[0]}")
                break
        else:
            seen[candidate.image_id] = seen[candidate.stored.lower()] = candidate
            kept.append(candidate)
    return kept


def _check_strict(ledger: Ledger, settings: Settings) -> None:
    faults = [drop for drop in ledger.drops if drop.faulty]
    if settings.strict and faults:
        first = "; ".join(str(drop) for drop in faults[:3])
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise StrictError(f"{len(faults)} rows would be dropped: {first}{more}")


def _check_any(left: Sequence[Any], ledger: Ledger, root: Path) -> None:
    if left:
        return
    reasons = Counter(drop.reason for drop in ledger.drops).most_common(3)
    listed = ", ".join(f"{reason}: {count}" for reason, count in reasons)
    faults = [drop for drop in ledger.drops if drop.faulty] or ledger.drops
    raise DatasetError(f"{root}: all {ledger.rows_in} rows were dropped ({listed}); the first is {faults[0]}")


def _write_dropped(path: Path, drops: Sequence[Drop]) -> None:
    columns = ["file", "row", "source", "reason", "detail", "faulty"]
    table = pd.DataFrame([asdict(drop) for drop in drops], columns=columns)
    _write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
