"""Tests of data_scripts.selection: drawing splits."""

from collections import Counter

import pytest

from data_scripts.selection import draw_splits
from mgca_lib.data.studies import DatasetError


@pytest.mark.parametrize(
    ("patients", "valid", "test", "expected"),
    [  # train, valid, test
        (10, 0.1, 0.2, (7, 1, 2)),
        (1000, 0.15, 0.15, (700, 150, 150)),
        (10, 0.0, 0.0, (10, 0, 0)),
        (10, 0.0, 0.3, (7, 0, 3)),
        (14, 0.1, 0.2, (10, 1, 3)),
        (3, 0.01, 0.01, (1, 1, 1)),
        (2, 0.1, 0.1, (1, 0, 1)),
        (1, 0.5, 0.4, (1, 0, 0)),
        (0, 0.1, 0.2, (0, 0, 0)),
        (2, 0.09, 0.9, (1, 0, 1)),
    ],
)
def test_sizes(patients, valid, test, expected):
    counts = Counter(draw_splits(map(str, range(patients)), valid=valid, test=test, seed=3).values())
    assert tuple(counts[split] for split in ("train", "valid", "test")) == expected


def test_order_and_repetition_do_not_matter_and_the_seed_does():
    names = [f"p{number}" for number in range(50)]
    drawn = draw_splits(names, valid=0.1, test=0.2, seed=1)
    assert draw_splits([*names[::-1], "p3", "p3"], valid=0.1, test=0.2, seed=1) == drawn
    assert draw_splits(names, valid=0.1, test=0.2, seed=2) != drawn
    assert set(drawn) == set(names)


@pytest.mark.parametrize(
    ("valid", "test", "seed", "message"),
    [
        (-0.1, 0.2, 0, "--valid-fraction -0.1"),
        (0.1, 1.0, 0, "--test-fraction 1.0"),
        (float("nan"), 0.2, 0, "--valid-fraction nan"),
        (0.5, 0.5, 0, "nothing is left for training"),
        (0.1, 0.2, -1, "--seed -1"),
    ],
)
def test_senseless_settings(valid, test, seed, message):
    with pytest.raises(DatasetError, match=message):
        draw_splits(["a", "b"], valid=valid, test=test, seed=seed)
