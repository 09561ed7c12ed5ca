"""Means with intervals: no number of the course stands without saying how far it can be trusted."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate with the two ends of its confidence interval.

    Attributes:
        mean: The estimate itself; for a resampled statistic its value on the cases as they are.
        low: Lower end.
        high: Upper end.
        n: Number of independent units behind it (seeds, queries, studies).
    """

    mean: float
    low: float
    high: float
    n: int

    def as_metric(self) -> dict[str, float]:
        """Return the form that ``metrics.json`` holds.

        >>> Interval(0.5, 0.25, 0.75, 12).as_metric()
        {'mean': 0.5, 'low': 0.25, 'high': 0.75, 'n': 12}
        """
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f}, n={self.n})"


def t_interval(
    values: Sequence[float],
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Student's t interval of a mean, for a handful of seeds.

    Args:
        values: One value a seed; at least two.
        level: Confidence level in (0, 1).
        bounds: Range that the measured quantity cannot leave; the ends are cut there, the mean is not.

    Raises:
        ValueError: fewer than two values, or one of them is not finite.

    >>> print(t_interval([0.7, 0.8, 0.9]))
    0.800 (0.552 to 1.048, n=3)
    """
    array = np.asarray(values, dtype=np.float64)
    _check_level(level)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"a t interval needs two values or more, found {array.size}; resample test cases instead")
    if not np.isfinite(array).all():
        raise ValueError(f"a t interval needs finite values, found {array.tolist()}")
    mean = float(array.mean())
    standard_error = float(array.std(ddof=1)) / math.sqrt(len(array))
    half = float(stats.t.ppf(0.5 + level / 2, df=len(array) - 1)) * standard_error
    return Interval(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]), len(array))


def welch_interval(before: Sequence[float], after: Sequence[float], *, level: float = 0.95) -> Interval:
    """Welch's interval of the difference of two means that share nothing, such as the seeds of two computers.

    Where the same seeds stand on both sides, the differences within seeds (:func:`t_interval`) are the better question.

    Args:
        before: One value a seed; at least two.
        after: The same for the other side; their number and their variance may differ.
        level: Confidence level in (0, 1).

    Returns:
        The mean of ``after`` less that of ``before``; ``n`` counts the values of both.

    Raises:
        ValueError: a side has fewer than two values, or one of them is not finite.

    >>> print(welch_interval([0.1, 0.2, 0.3], [0.4, 0.6]))
    0.300 (-0.298 to 0.898, n=5)
    """
    sides = [np.asarray(values, dtype=np.float64) for values in (before, after)]
    _check_level(level)
    if any(side.ndim != 1 or len(side) < 2 for side in sides):
        raise ValueError(f"Welch's interval needs two values or more a side, found {sides[0].size} and {sides[1].size}")
    if not all(np.isfinite(side).all() for side in sides):
        raise ValueError(f"Welch's interval needs finite values, found {[side.tolist() for side in sides]}")
    mean, n = float(sides[1].mean() - sides[0].mean()), len(sides[0]) + len(sides[1])
    if not any(np.ptp(side) for side in sides):  # no spread to divide by, and none to report
        return Interval(mean, mean, mean, n)
    bounds = stats.ttest_ind(sides[1], sides[0], equal_var=False).confidence_interval(level)
    return Interval(mean, float(bounds.low), float(bounds.high), n)


def wilson_interval(hits: float, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's interval of a proportion; unlike the bootstrap it stays honest when all or none hit.

    Args:
        hits: Number of successes; may be fractional where each unit contributes a mean of several trials.
        n: Number of independent units.
        level: Confidence level in (0, 1).

    Raises:
        ValueError: ``n`` is not positive or ``hits`` lies outside 0 ... ``n``.

    >>> print(wilson_interval(0, 10))
    0.000 (0.000 to 0.278, n=10)
    """
    _check_level(level)
    if n < 1 or not -1e-9 <= hits <= n + 1e-9:
        raise ValueError(f"a proportion needs 0 <= hits <= n and n >= 1, found hits={hits}, n={n}")
    z = float(stats.norm.ppf(0.5 + level / 2))
    share = min(max(hits / n, 0.0), 1.0)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)), n)


def hit_rate_interval(
    hits: Sequence[float] | np.ndarray,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of a share of hits, with Wilson's in its place where every case or none is a hit.

    Zeros drawn anew are zeros again, so a bootstrap would then claim to be certain.

    Args:
        hits: One value a case, 1 for a hit and 0 for a miss.
        groups: As in :func:`bootstrap_interval`; Wilson's interval counts them, not cases.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: there is no case, or a value is neither 0 nor 1; and as in :func:`bootstrap_interval`.

    >>> print(hit_rate_interval([0] * 20, groups=list("aabbccddeeffgghhiijj")))
    0.000 (0.000 to 0.278, n=10)
    """
    array = np.asarray(hits, dtype=np.float64)
    if not np.isin(array, (0.0, 1.0)).all():
        raise ValueError("hits must be 0 or 1, one a case")
    interval = bootstrap_interval(
        lambda rows: array[rows].mean(), len(array), groups=groups, resamples=resamples, seed=seed
    )
    if interval.mean in (0.0, 1.0):
        return wilson_interval(interval.mean * interval.n, interval.n)
    return interval


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    size: int,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    method: str = "percentile",
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Bootstrap interval of any statistic of test cases.

    Args:
        statistic: Function of an int array of case numbers (with repeats) that returns the value on those
            cases. It may return NaN where a resample leaves it undefined (an AUROC without positives); such
            resamples are left out.
        size: Number of cases.
        groups: ``size`` group names, for example patients; a tuple is one name. Whole groups are then drawn, since
            cases of one patient are not independent. Without it every case is drawn alone.
        method: ``"percentile"``: the quantiles of the resampled values. ``"normal"``: value on all cases
            plus and minus z standard deviations of the resampled values, for statistics that repeated cases
            inflate (purity, NMI).
        resamples: Number of resamples, at least 2.
        seed: Seed of the resampling.
        level: Confidence level in (0, 1).
        bounds: Range that the statistic cannot leave; only ``"normal"`` needs it.

    Raises:
        ValueError: there is no case, there are too few resamples, the group names do not fit or one is missing (None
            or NaN), the statistic is undefined on all cases, or it is undefined on more than half of the resamples.

    >>> values = np.arange(10.0)
    >>> interval = bootstrap_interval(lambda rows: values[rows].mean(), 10)
    >>> interval.mean, interval.low < 4.5 < interval.high
    (4.5, True)
    """
    _check_level(level)
    if method not in ("percentile", "normal"):
        raise ValueError(f"bootstrap method {method!r} is not 'percentile' or 'normal'")
    if size < 1:
        raise ValueError("a bootstrap needs at least one case")
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, found {resamples}")
    if groups is not None and len(groups) != size:
        raise ValueError(f"{len(groups)} group names for {size} cases")
    units = np.arange(size) if groups is None else _group_numbers(groups)
    estimate = float(statistic(np.arange(size)))
    if not math.isfinite(estimate):
        raise ValueError("the statistic is undefined on the cases as they are")
    order = np.argsort(units, kind="stable")
    sizes = np.bincount(units)
    starts = np.cumsum(sizes) - sizes
    n = len(sizes)
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for number in range(resamples):
        picked = rng.integers(n, size=n)
        drawn[number] = statistic(picked if groups is None else _members(picked, order, starts, sizes))
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < resamples / 2:
        raise ValueError(f"the statistic is defined on {len(drawn)} of {resamples} resamples only; use more cases")
    if method == "percentile":
        low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    else:
        half = stats.norm.ppf(0.5 + level / 2) * drawn.std(ddof=1)
        low, high = max(estimate - half, bounds[0]), min(estimate + half, bounds[1])
    return Interval(estimate, float(low), float(high), n)


def _group_numbers(groups: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """Number the groups in the order of their names, or of their appearance where names cannot be sorted."""
    names = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    for row, name in enumerate(names):
        if name is None or name != name:  # all cases without a name would pass for one patient
            raise ValueError(f"group name {name!r} (case {row}) is missing; name every case, or leave such cases out")
    try:
        distinct = sorted(set(names))
    except TypeError:
        distinct = list(dict.fromkeys(names))
    number_of = {name: number for number, name in enumerate(distinct)}
    return np.array([number_of[name] for name in names])


def _members(picked: np.ndarray, order: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the cases of the picked groups, group after group; without a loop, since a test set has many patients."""
    counts = sizes[picked]
    firsts = np.cumsum(counts) - counts
    return order[np.arange(counts.sum()) + np.repeat(starts[picked] - firsts, counts)]


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
