"""Intervals against scipy and against simulated coverage."""

import numpy as np
import pytest
from scipy import stats

from mgca_lib.evaluation.intervals import (
    bootstrap_interval,
    hit_rate_interval,
    t_interval,
    welch_interval,
    wilson_interval,
)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_t_interval_equals_scipy(level):
    values = [0.71, 0.74, 0.69, 0.78]
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    interval = t_interval(values, level=level)
    np.testing.assert_allclose((interval.low, interval.high), (expected.low, expected.high), rtol=1e-12)
    assert interval.mean == pytest.approx(0.73, abs=1e-12)
    assert interval.n == 4


def test_t_interval_is_cut_at_the_bounds_only():
    interval = t_interval([0.9, 1.0], bounds=(0, 1))
    assert interval.high == 1
    assert interval.low == t_interval([0.9, 1.0]).low
    assert interval.mean == pytest.approx(0.95)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_welch_interval_follows_the_written_formula(level):
    """Variances .01 and .02: standard error sqrt(.01/3 + .02/2), freedom by Welch and Satterthwaite."""
    parts = 0.01 / 3, 0.02 / 2
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1)
    half = stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(sum(parts))
    found = welch_interval([0.1, 0.2, 0.3], [0.4, 0.6], level=level)
    assert [found.mean, found.low, found.high] == pytest.approx([0.3, 0.3 - half, 0.3 + half], abs=1e-12)
    assert found.n == 5
    still = welch_interval([0.5, 0.5], [0.75, 0.75])
    assert (still.mean, still.low, still.high, still.n) == (0.25, 0.25, 0.25, 4)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 10), (50, 50), (1, 1)])
def test_wilson_interval_equals_scipy(hits, n):
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    interval = wilson_interval(hits, n)
    np.testing.assert_allclose((interval.low, interval.high), (expected.low, expected.high), atol=1e-12)


def test_bootstrap_of_a_mean_equals_scipy():
    values = np.random.default_rng(1).normal(size=80)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2)
    ).confidence_interval
    for method in ("percentile", "normal"):
        interval = bootstrap_interval(lambda rows: values[rows].mean(), 80, resamples=4000, method=method)
        np.testing.assert_allclose((interval.low, interval.high), (expected.low, expected.high), atol=0.025)
        assert interval.mean == pytest.approx(values.mean())


@pytest.mark.parametrize("hit", [0, 1])
def test_a_share_of_hits_has_a_width_even_where_all_cases_agree(hit):
    """30 films of 10 patients: scipy's interval of 0 or 10 of 10, not of 30."""
    found = hit_rate_interval([hit] * 30, groups=np.repeat(np.arange(10), 3), resamples=20)
    expected = stats.binomtest(10 * hit, 10).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose((found.low, found.high), (expected.low, expected.high), atol=1e-12)
    assert (found.mean, found.n) == (hit, 10)
    mixed = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    drawn = bootstrap_interval(lambda rows: mixed[rows].mean(), 6, groups=list("aabbcc"), resamples=200, seed=3)
    assert hit_rate_interval(mixed > 0, groups=list("aabbcc"), resamples=200, seed=3) == drawn


def test_bootstrap_of_groups_draws_whole_groups():
    groups = np.array(["b", "a", "b", "c", "c", "c"])
    seen = set()

    def statistic(rows):
        for name in "abc":
            counts = np.bincount(rows, minlength=6)[groups == name]
            assert len(set(counts)) == 1
            seen.add((name, int(counts[0])))
        return float(len(rows))

    interval = bootstrap_interval(statistic, 6, groups=groups, resamples=50)
    assert interval.n == 3
    assert ("b", 0) in seen
    assert ("b", 2) in seen


@pytest.mark.parametrize("names", [[("p", 2), ("p", 10), ("q", 1)], [7, "7", ("p", 1)]], ids=["tuples", "mixed"])
def test_a_group_may_have_any_hashable_name(names):
    groups = [names[0], names[1], names[0], names[2]]
    seen = []

    def statistic(rows):
        counts = np.bincount(rows, minlength=4)
        assert counts[0] == counts[2]
        seen.append(tuple(counts))
        return 0.0

    assert bootstrap_interval(statistic, 4, groups=groups, resamples=100).n == 3
    assert {sum(counts) for counts in seen} == {3, 4, 5, 6}  # of three draws none to three are the pair


def test_groups_widen_the_interval_of_repeated_measurements():
    one = np.random.default_rng(0).normal(size=40)
    repeated, groups = np.repeat(one, 9), np.repeat(np.arange(40), 9)
    naive = bootstrap_interval(lambda rows: repeated[rows].mean(), 360)
    honest = bootstrap_interval(lambda rows: repeated[rows].mean(), 360, groups=groups)
    assert (honest.high - honest.low) / (naive.high - naive.low) == pytest.approx(3, rel=0.15)


def test_undefined_resamples_are_left_out_and_seeds_repeat():
    def statistic(rows):
        return float("nan") if 0 not in rows else 1.0

    interval = bootstrap_interval(statistic, 5, resamples=200)
    assert (interval.low, interval.high) == (1, 1)
    values = np.arange(20.0)
    draws = [bootstrap_interval(lambda rows: values[rows].mean(), 20, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([1.0]), "two values or more"),
        (lambda: t_interval([1.0, float("nan")]), "finite"),
        (lambda: welch_interval([1.0, 2.0], [1.0]), "two values or more a side, found 2 and 1"),
        (lambda: welch_interval([1.0, float("inf")], [1.0, 2.0]), "finite"),
        (lambda: wilson_interval(3, 2), "0 <= hits <= n"),
        (lambda: wilson_interval(0, 0), "n >= 1"),
        (lambda: t_interval([1, 2], level=95), "between 0 and 1"),
        (lambda: hit_rate_interval([0, 0.5]), "0 or 1"),
        (lambda: hit_rate_interval([]), "at least one case"),
        (lambda: bootstrap_interval(len, 0), "at least one case"),
        (lambda: bootstrap_interval(len, 3, groups=[1]), "1 group names for 3 cases"),
        (lambda: bootstrap_interval(len, 3, groups=["a", None, "b"]), r"group name None \(case 1\) is missing"),
        (lambda: bootstrap_interval(len, 2, groups=np.array([1.0, np.nan])), r"group name nan \(case 1\) is missing"),
        (lambda: bootstrap_interval(len, 3, resamples=1), "resamples must be at least 2, found 1"),
        (lambda: bootstrap_interval(lambda rows: float("nan"), 3), "undefined on the cases"),
        (lambda: bootstrap_interval(lambda rows: 1 if (rows == [0, 1, 2]).all() else np.nan, 3), "resamples only"),
        (lambda: bootstrap_interval(len, 3, method="bca"), "not 'percentile' or 'normal'"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_levels_and_the_normal_bootstrap_are_exact():
    values, rng = np.random.default_rng(1).normal(size=80), np.random.default_rng(0)
    drawn = np.array([values[rng.integers(80, size=80)].mean() for _ in range(500)])
    found = bootstrap_interval(lambda rows: values[rows].mean(), 80, method="normal", resamples=500, level=0.8)
    half = stats.norm.ppf(0.9) * drawn.std(ddof=1)
    assert (found.mean - found.low, found.high - found.mean) == pytest.approx((half, half), rel=1e-9)
    found = bootstrap_interval(lambda rows: values[rows].mean(), 80, resamples=500, level=0.8)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.1, 0.9])), rel=1e-9)
    expected = stats.binomtest(3, 10).proportion_ci(0.8, "wilson")
    found = wilson_interval(3, 10, level=0.8)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
