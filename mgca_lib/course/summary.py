"""Sums up finished runs: the table at the end of ``make course``, and numbers over several seeds."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.json"
SEEDS_FILE = "seeds.json"


class RestrictedDataError(ValueError):
    """A run may not be passed on; the message is one line that names it."""


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the content of ``folder/metrics.json``.

    Raises:
        FileNotFoundError: the run did not finish.
    """
    return json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))


def restricted_data(provenance: Mapping[str, Any]) -> list[str]:
    """Return the names of the restricted datasets that a run used; unclear ones count as restricted."""
    return sorted(name for name, facts in provenance.get("data", {}).items() if facts.get("restricted") is not False)


def check_publishable(folder: Path) -> None:
    """Raise unless all data of the run in a folder may be passed on.

    Raises:
        RestrictedDataError: the run used restricted data, or does not say which data it used.
    """
    provenance = read_metrics(folder)["provenance"]
    if restricted_data(provenance) or not provenance.get("data"):
        raise RestrictedDataError(f"{folder / METRICS_FILE}: made from restricted or unnamed data; not published")


def publish_seeds(outputs: Path, target: Path) -> bool:
    """Copy the numbers over several seeds, if there are any, to where git keeps them.

    Args:
        outputs: Folder of one profile, for example ``outputs/demo``.
        target: File to write.

    Returns:
        Whether the file changed.

    Raises:
        RestrictedDataError: one of the runs may not be passed on.
    """
    source = outputs / SEEDS_FILE
    if not source.is_file():
        return False
    text = source.read_text(encoding="utf-8")
    first = [outputs / name for name in json.loads(text)]  # the runs of the first seed lie in OUTPUTS itself
    for folder in (*first, *(path.parent for path in sorted(outputs.glob(f"seed-*/*/{METRICS_FILE}")))):
        check_publishable(folder)
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return False
    target.write_text(text, encoding="utf-8", newline="\n")
    return True


def course_table(outputs: Path, names: Sequence[str]) -> str:
    """Return the table of a course run: notebook, question, seconds, headline number.

    Args:
        outputs: Folder of one profile, for example ``outputs/demo``.
        names: Notebooks in order; those without ``metrics.json`` are shown as not finished.
    """
    rows = [("notebook", "question", "seconds", "headline")]
    for name in names:
        if not (outputs / name / METRICS_FILE).is_file():
            rows.append((name, "", "-", "did not finish"))
            continue
        content = read_metrics(outputs / name)
        facts = content["provenance"]
        headline = facts["headline"]
        number = f"{headline} = {format_metric(content['metrics'][headline])}"
        rows.append((name, facts["question"], f"{facts['seconds']:.0f}", number))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def format_metric(value: float | dict[str, float]) -> str:
    """Return a metric as text.

    >>> format_metric({"mean": 0.8125, "low": 0.79, "high": 0.83, "n": 3})
    '0.812 (0.790 to 0.830, n=3)'
    >>> format_metric(2400)
    '2400'
    """
    if isinstance(value, dict):
        return f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f}, n={value['n']})"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3f}"


def summarise_seeds(folders: Sequence[Path]) -> dict[str, Any]:
    """Return mean and 95 % t interval over seeds for every metric that all runs of a notebook share.

    Args:
        folders: Folders of one notebook, one per seed.

    Returns:
        ``{"seeds": [...], "metrics": {name: {"mean", "low", "high", "n"}}}``. A metric that is an interval within its
        run counts with its mean.

    Raises:
        ValueError: fewer than two folders, or two of the same seed.
    """
    from mgca_lib.evaluation.intervals import t_interval  # brings in SciPy, which most commands do without

    runs = [read_metrics(folder) for folder in folders]
    seeds = [run["provenance"]["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {seeds}: every run needs a seed of its own")
    shared = [name for name in runs[0]["metrics"] if all(name in run["metrics"] for run in runs)]
    metrics = {name: t_interval([_mean(run["metrics"][name]) for run in runs]).as_metric() for name in shared}
    return {"seeds": seeds, "metrics": metrics}


def busy_seconds(notebooks: Sequence[Path]) -> float:
    """Return the time in which at least one of the executed notebooks ran, from papermill's own clock.

    Args:
        notebooks: Executed ``.ipynb`` files. Notebooks that ran side by side count once, those that were killed, and
            therefore have no end, not at all.
    """
    spans = []
    for path in notebooks:
        record = json.loads(path.read_text(encoding="utf-8"))["metadata"]["papermill"]
        if record["end_time"]:
            spans.append((datetime.fromisoformat(record["start_time"]), datetime.fromisoformat(record["end_time"])))
    total, reached = 0.0, None
    for start, end in sorted(spans):
        begin = start if reached is None else max(start, reached)
        total += max((end - begin).total_seconds(), 0.0)
        reached = end if reached is None else max(end, reached)
    return total


def _mean(value: float | dict[str, float]) -> float:
    return value["mean"] if isinstance(value, dict) else value
