"""Results of the grid (variants times seeds) as one table: your own cells, and those that come with the project.

A whole grid takes more than an hour, so ``make course`` does not train it: its results at ``demo`` are committed as
tables, with how they came about in a ``.json`` beside each. ``make grid`` repeats them, and own cells then take the
place of the committed ones. The same seed gives every variant the same data in the same order, so variants are compared
by differences within a seed.

There are six committed tables, and nothing is compared within seeds across them, since each may have been trained on
another computer: ``"terms"``, the paper's table 4 and the losses that could take the place of its token term, for
notebooks 14 and 16; ``"inputs"``, what goes into such a loss, and ``"denials"``, such a loss without the words of
denials, for notebook 16; ``"switches"``, prototypes and the published code's deviations, for notebooks 11 and 12; and
two of runs with three times as many epochs, for notebook 16: ``"long"``, and ``"long_denials"``, without the words of
denials. Their cells live in ``outputs/PROFILE/long`` and ``outputs/PROFILE/long_denials``, those of all others in
``outputs/PROFILE/grid``. What a variant is held against stands in its table, too. Cells of one table share their
number of epochs and their data.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd

from mgca_lib.course.summary import METRICS_FILE, check_publishable, read_metrics
from mgca_lib.evaluation.intervals import Interval, t_interval
from mgca_lib.variants import VARIANTS

Kind = Literal["terms", "inputs", "denials", "switches", "long", "long_denials"]

COMMITTED = MappingProxyType(
    {
        "terms": Path("notebooks", "grid", "terms.csv"),
        "inputs": Path("notebooks", "grid", "inputs.csv"),
        "denials": Path("notebooks", "grid", "denials.csv"),
        "switches": Path("notebooks", "grid", "switches.csv"),
        "long": Path("notebooks", "grid", "long.csv"),
        "long_denials": Path("notebooks", "grid", "long_denials.csv"),
    }
)
"""The tables that come with the project, by kind; how their cells came about is in the ``.json`` beside each."""
_LONG = ("long", "long_denials")
OWN = MappingProxyType({kind: kind if kind in _LONG else "grid" for kind in COMMITTED})
"""Where cells of your own are, below ``outputs/PROFILE``."""
TABLE_COLUMNS = ("variant", "seed", "metric", "value", "low", "high", "n", "source")
COMPARED = tuple(name for name, variant in VARIANTS.items() if variant.group in ("ablation", "grounding"))
"""What notebooks 14 and 16 compare, and ``make grid`` trains unless told otherwise."""
_CELL = ["variant", "seed"]
_GROUPS = MappingProxyType(
    {
        "terms": ("ablation", "grounding"),
        "inputs": ("patches", "words"),
        "denials": ("denials",),
        "switches": ("prototypes", "quirks"),
    }
)
# Variants of other groups with a place in a table: what its own are held against.
_PARTNERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"inputs": ("cta_grounded",), "denials": ("cta_grounded",), "switches": ("all", "ita+cta")}
)


class GridError(ValueError):
    """A table of results cannot be read; the message is one line."""


def grid_table(folder: str | Path) -> pd.DataFrame:
    """Read every finished cell below ``folder/VARIANT/seed-N/metrics.json``.

    Args:
        folder: For example ``outputs/demo/grid``.

    Returns:
        One row a number, with :data:`TABLE_COLUMNS`: ``value`` is the number or its mean, ``low``, ``high`` and ``n``
        are those of its interval within the run (NaN without one), ``source`` is ``"own"``; no rows where there is no
        cell.
    """
    rows = []
    for path in sorted(Path(folder).glob(f"*/seed-*/{METRICS_FILE}")):
        content = read_metrics(path.parent)
        seed = content["provenance"]["seed"]
        for metric, found in content["metrics"].items():
            cell = found if isinstance(found, dict) else {"mean": found}
            bounds = [float(cell.get(part, np.nan)) for part in ("mean", "low", "high", "n")]
            rows.append((path.parent.parent.name, seed, metric, *bounds, "own"))
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))


def load_grid(root: str | Path, profile: str, folder: str | Path = "", *, kind: Kind = "terms") -> pd.DataFrame:
    """Read the results that a notebook shows.

    Own cells come first. At ``demo``, committed cells fill in variants and seeds that you did not run. Numbers of two
    profiles do not belong into one table, so at another profile own cells are shown alone, once they are enough to
    compare: every variant of :data:`COMPARED` that has its place in the table, or of the committed long runs, with two
    seeds; until then the committed ones.

    Args:
        root: The project's folder.
        profile: Whose own cells to read.
        folder: Folder of own cells; empty: that of :data:`OWN` in the project.
        kind: A name of :data:`COMMITTED`; ``"long"`` and ``"long_denials"`` for the cells with all epochs.

    Returns:
        As :func:`grid_table`; ``source`` is ``"own"`` or ``"committed"``.

    Raises:
        GridError: the committed table is missing or damaged.

    >>> from mgca_lib.run import find_root
    >>> bool((load_grid(find_root(), "paper", "no such folder")["source"] == "committed").all())
    True
    """
    root = Path(root)
    own = _own_cells(root / (folder or Path("outputs", profile, OWN[kind])), kind)
    committed = read_committed(root, kind)
    if profile != "demo":
        seeds = own.groupby("variant")["seed"].nunique()
        wanted = set(committed["variant"]) if kind in _LONG else [name for name in COMPARED if _belongs(name, kind)]
        enough = {name for name, number in seeds.items() if number > 1}
        alone = kind in _PARTNERS and enough <= set(_PARTNERS[kind])  # with nothing that is held against them
        return own if enough >= set(wanted) and not alone else committed
    known = set(own[_CELL].itertuples(index=False, name=None))
    rest = committed[[cell not in known for cell in committed[_CELL].itertuples(index=False, name=None)]]
    return pd.concat([part for part in (own, rest) if len(part)], ignore_index=True)


def read_committed(root: str | Path, kind: Kind = "terms") -> pd.DataFrame:
    """Read the results that come with the project.

    Args:
        root: The project's folder.
        kind: A name of :data:`COMMITTED`.

    Raises:
        GridError: the file is missing or damaged.
    """
    path = Path(root) / COMMITTED[kind]
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise GridError(
            f"{path}: missing; it comes with the project: git checkout {COMMITTED[kind].as_posix()}"
        ) from None
    except (OSError, ValueError) as error:
        raise GridError(f"{path}: not a readable table ({error})") from None
    wanted = [column for column in TABLE_COLUMNS if column != "source"]
    if missing := [column for column in wanted if column not in table]:
        raise GridError(f"{path}: column {missing[0]!r} is missing")
    return table[wanted].assign(source="committed")


def committed_cells(root: str | Path, kind: Kind = "terms") -> pd.DataFrame:
    """How the committed cells of a table came about.

    Args:
        root: The project's folder.
        kind: A name of :data:`COMMITTED`.

    Returns:
        One row a cell: ``variant``, ``seed``, ``commit``, ``training_seconds``, ``processor``, ``cores``, ``precision``
        ("" where a cell did not record it) and ``data``, the hash of its training table.
    """
    record = (Path(root) / COMMITTED[kind]).with_suffix(".json")
    rows = []
    for name, facts in json.loads(record.read_text(encoding="utf-8")).items():
        variant, _, seed = name.rpartition("/seed-")
        hardware, data = facts["hardware"], facts["data"]["mimic_cxr"]["sha256"]
        rows.append(
            (
                variant,
                int(seed),
                facts["commit"],
                facts["training_seconds"],
                hardware["processor"],
                hardware["cores"],
                facts.get("precision", ""),
                data,
            )
        )
    return pd.DataFrame(rows, columns=[*_CELL, "commit", "training_seconds", "processor", "cores", "precision", "data"])


def trained_elsewhere(root: str | Path, baseline: str, kind: Kind = "terms") -> tuple[str, ...]:
    """Name the variants with a committed cell of a processor and precision that no cell of the baseline has.

    The same seed gives two variants the same first weights and the same data, but processors round differently, and
    the precision of a training follows them: differences between such variants are paired less well.

    Args:
        root: The project's folder.
        baseline: The variant that the others are held against.
        kind: A name of :data:`COMMITTED`.
    """
    cells = committed_cells(root, kind)
    cells = cells.assign(place=list(zip(cells["processor"], cells["precision"], strict=True)))
    home = set(cells.loc[cells["variant"] == baseline, "place"])
    return tuple(sorted(set(cells.loc[~cells["place"].isin(home), "variant"])))


def over_seeds(
    table: pd.DataFrame,
    metric: str,
    *,
    single: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> dict[str, Interval]:
    """Mean of a metric over the seeds of each variant, with its 95 % t interval.

    Args:
        table: From :func:`load_grid`.
        metric: Its name.
        single: Keep variants with one seed, with that run's own interval (over patients, say), whose ``n`` is 1.
        bounds: Range that the metric cannot leave, such as (0, 1) for a hit rate: t intervals are cut there.

    Returns:
        An interval for each variant; ``n`` counts seeds.

    >>> rows = [("ita", 1, "auroc", 0.6), ("ita", 2, "auroc", 0.8), ("all", 1, "auroc", 0.7)]
    >>> table = pd.DataFrame(rows, columns=["variant", "seed", "metric", "value"])
    >>> {name: round(cell.mean, 3) for name, cell in over_seeds(table, "auroc").items()}
    {'ita': 0.7}
    """
    found = {}
    for name, own in table[table["metric"] == metric].groupby("variant", sort=False):
        if len(own) > 1:
            found[name] = t_interval(own["value"].tolist(), bounds=bounds)
        elif single:
            found[name] = Interval(*map(float, own[["value", "low", "high"]].iloc[0]), 1)
    return found


def publish_grid(root: str | Path, kind: Kind = "terms") -> bool:
    """Write your finished cells at ``demo`` over the committed results.

    Other committed cells stay, unless they were trained on other data: with those the new ones cannot be compared. The
    names of those that go are printed.

    Args:
        root: The project's folder.
        kind: A name of :data:`COMMITTED`.

    Returns:
        Whether the committed files changed.

    Raises:
        RestrictedDataError: a cell was trained on data that may not be passed on, or names none.
        GridError: the new cells were trained on different data.
    """
    root = Path(root)
    folder, target = root / "outputs" / "demo" / OWN[kind], root / COMMITTED[kind]
    cells = [path for path in sorted(folder.glob(f"*/seed-*/{METRICS_FILE}")) if _belongs(_cell_of(path)[0], kind)]
    if kind not in _LONG and all(_cell_of(path)[0] in _PARTNERS.get(kind, ()) for path in cells):
        cells = []  # partners alone have nothing to be held against
    if not cells:
        return False
    for path in cells:
        check_publishable(path.parent)
    table = load_grid(root, "demo", kind=kind) if target.is_file() else _own_cells(folder, kind)
    record = target.with_suffix(".json")
    facts = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    new = {"/".join(_cell_of(path)): _facts(path.parent) for path in cells}
    first, *others = (cell["data"] for cell in new.values())
    if not all(_same_data(first, other) for other in others):
        raise GridError(f"{folder}: its cells were trained on different data; remove those that do not belong together")
    gone = {name for name, cell in facts.items() if not _same_data(first, cell["data"])} - set(new)
    if gone:
        print(f"{target.name}: trained on other data, so left out from now on: {', '.join(sorted(gone))}")
    facts = {name: cell for name, cell in facts.items() if name not in gone} | new
    kept = [f"{variant}/seed-{seed}" not in gone for variant, seed in table[_CELL].itertuples(index=False, name=None)]
    table = table[kept].drop(columns="source").sort_values([*_CELL, "metric"], kind="stable", ignore_index=True)
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    written = [(target, text), (record, json.dumps(facts, indent=1, sort_keys=True) + "\n")]
    changed = False
    for path, content in written:
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8", newline="\n")
            changed = True
    return changed


def paired_differences(table: pd.DataFrame, baseline: str, metric: str) -> pd.DataFrame:
    """Difference of every variant to a baseline, within each seed.

    Args:
        table: From :func:`load_grid`, or any table with ``variant``, ``seed``, ``metric`` and ``value``.
        baseline: Variant that the others are held against.
        metric: Name of a metric.

    Returns:
        One row a variant: ``variant``, ``mean``, ``low``, ``high`` (95 % t interval over the seeds that both have;
        NaN with fewer than two) and ``n``, its number of seeds. Variants without a common seed are left out.

    Raises:
        ValueError: the baseline has no cell with that metric.

    >>> rows = [("all", 1, "auroc", 0.7), ("all", 2, "auroc", 0.8), ("ita", 1, "auroc", 0.6), ("ita", 2, "auroc", 0.7)]
    >>> table = pd.DataFrame(rows, columns=["variant", "seed", "metric", "value"])
    >>> paired_differences(table, "all", "auroc")["mean"].round(3).tolist()
    [-0.1]
    """
    by_seed = table[table["metric"] == metric].pivot_table(index="seed", columns="variant", values="value")
    if baseline not in by_seed:
        raise ValueError(f"no cell of {baseline!r} has the metric {metric!r}; found {sorted(by_seed)}")
    rows = []
    for variant in by_seed.columns.drop(baseline):
        differences = (by_seed[variant] - by_seed[baseline]).dropna().tolist()
        if len(differences) > 1:
            spread = t_interval(differences)
            rows.append((variant, spread.mean, spread.low, spread.high, spread.n))
        elif differences:
            rows.append((variant, differences[0], np.nan, np.nan, 1))
    return pd.DataFrame(rows, columns=["variant", "mean", "low", "high", "n"])


def compare_steps(
    table: pd.DataFrame, steps: Mapping[str, tuple[str, str]], metrics: Mapping[str, str]
) -> pd.DataFrame:
    """Put what each of several changes does, seed by seed, into words.

    Args:
        table: From :func:`load_grid`.
        steps: ``{step: (variant before, variant after)}``.
        metrics: ``{name: metric}``.

    Returns:
        One row for every step and metric that the table has a common seed for: ``step``, ``name``, ``before``,
        ``after``, ``metric``, the columns of :func:`paired_differences` and ``words``, their :func:`verdict`.

    >>> rows = [("all", 1, "auroc", 0.7), ("all", 2, "auroc", 0.8), ("ita", 1, "auroc", 0.6), ("ita", 2, "auroc", 0.7)]
    >>> table = pd.DataFrame(rows, columns=["variant", "seed", "metric", "value"])
    >>> compare_steps(table, {"two terms more": ("ita", "all")}, {"probe": "auroc"})["words"].tolist()
    ['higher by 0.100']
    """
    rows = []
    for step, (before, after) in steps.items():
        for name, metric in metrics.items():
            own = table[(table["metric"] == metric) & table["variant"].isin([before, after])]
            if set(own["variant"]) != {before, after}:
                continue
            for row in paired_differences(own, before, metric).to_dict("records"):
                words = verdict(row["mean"], row["low"], row["high"])
                cell = {part: row[part] for part in ("mean", "low", "high", "n")}
                rows.append({"step": step, "name": name, "before": before, "after": after, "metric": metric} | cell)
                rows[-1]["words"] = words
    columns = ["step", "name", "before", "after", "metric", "mean", "low", "high", "n", "words"]
    return pd.DataFrame(rows, columns=columns)


def verdict(mean: float, low: float, high: float) -> str:
    """Put a difference into words that its interval carries, and no others.

    Args:
        mean: The difference.
        low: Lower end of its interval; NaN: there is none.
        high: Upper end.

    >>> verdict(0.03, 0.01, 0.05)
    'higher by 0.030'
    >>> verdict(-0.01, -0.05, 0.03)
    'no difference at this size (at most 0.050 either way)'
    >>> verdict(0.1, float("nan"), float("nan"))
    'one seed: no verdict'
    """
    if np.isnan(low) or np.isnan(high):
        return "one seed: no verdict"
    if low <= 0 <= high:
        return f"no difference at this size (at most {max(abs(low), abs(high)):.3f} either way)"
    return f"{'higher' if mean > 0 else 'lower'} by {abs(mean):.3f}"


def _own_cells(folder: Path, kind: Kind) -> pd.DataFrame:
    own = grid_table(folder)
    return own[own["variant"].map(lambda variant: _belongs(variant, kind)).astype(bool)]


def _same_data(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two cells were trained and measured on the same tables, as far as both name them."""
    return all(one[name]["sha256"] == other[name]["sha256"] for name in one.keys() & other.keys())


def _belongs(variant: str, kind: Kind) -> bool:
    """Whether a variant has its place in a table: by its group, as a partner, or, among long runs, always."""
    if kind in _LONG:
        return True
    return variant in _PARTNERS.get(kind, ()) or (variant in VARIANTS and VARIANTS[variant].group in _GROUPS[kind])


def _cell_of(path: Path) -> tuple[str, str]:
    """Variant and ``seed-N`` of a cell's file."""
    return path.parent.parent.name, path.parent.name


def _facts(folder: Path) -> dict[str, Any]:
    """How a cell came about; the table says the rest."""
    provenance = read_metrics(folder)["provenance"]
    history = json.loads((folder / "pretraining" / "history.json").read_text(encoding="utf-8"))
    # The cell's own seconds would leave out a training that it found finished.
    facts = {"training_seconds": round(sum(epoch["seconds"] for epoch in history), 1)}
    kept = ("commit", "data", "hardware", "precision", "versions")
    return facts | {name: provenance[name] for name in kept if name in provenance}
