"""Counting what a preparation reads, keeps and leaves out, so that no source row is lost silently."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_scripts.candidates import Candidate
from mgca_lib.data.studies import SPLITS, DatasetError

DROPPED_FILE = "dropped.csv"


class StrictError(DatasetError):
    """Rows were dropped although ``strict`` forbids it."""


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


def check_strict(ledger: Ledger, *, strict: bool) -> None:
    """Fail in strict mode when a row was left out that is faulty.

    Raises:
        StrictError: naming the first three such rows.
    """
    faults = [drop for drop in ledger.drops if drop.faulty]
    if strict and faults:
        first = "; ".join(str(drop) for drop in faults[:3])
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        rows = "1 row" if len(faults) == 1 else f"{len(faults)} rows"
        raise StrictError(f"{rows} would be dropped: {first}{more}")


def check_any(left: Sequence[Any], ledger: Ledger, root: Path) -> None:
    """Fail when nothing is left.

    Raises:
        DatasetError: naming the most frequent reasons and the first row.
    """
    if left:
        return
    reasons = Counter(drop.reason for drop in ledger.drops).most_common(3)
    listed = ", ".join(f"{reason}: {count}" for reason, count in reasons)
    faults = [drop for drop in ledger.drops if drop.faulty] or ledger.drops
    raise DatasetError(f"{root}: all {ledger.rows_in} rows were dropped ({listed}); the first is {faults[0]}")
