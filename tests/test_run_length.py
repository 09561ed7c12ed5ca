"""Tests of data_scripts.run_length: hand-computed codes, a slow loop, round trips, malformed texts."""

import numpy as np
import pytest

from data_scripts.run_length import decode_runs, encode_runs


def slow_decode(text, height, width):
    """Paint the runs pixel by pixel, as the challenge describes the code."""
    mask = np.zeros((height, width), bool)
    numbers = [int(part) for part in text.split()]
    position = 0
    while numbers and text.strip() != "-1":
        offset, length = numbers.pop(0), numbers.pop(0)
        position += offset
        for _ in range(length):
            mask[position % height, position // height] = True
            position += 1
    return mask


def slow_encode(mask):
    """Walk down each column and note the gap before each run, and its length."""
    numbers, gap, length = [], 0, 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row, column]:
                length += 1
                continue
            if length:
                numbers += [gap, length]
                gap, length = 0, 0
            gap += 1
    if length:
        numbers += [gap, length]
    return " ".join(map(str, numbers)) or "-1"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("-1", ["....", "....", "...."]),
        (" -1 ", ["....", "....", "...."]),
        ("0 1", ["#...", "....", "...."]),
        ("11 1", ["....", "....", "...#"]),
        ("0 12", ["####", "####", "####"]),
        ("2 2", [".#..", "....", "#..."]),  # a run goes on at the top of the next column
        ("1 1 1 1", [".#..", "#...", "...."]),
        ("3 1 2 1", [".##.", "....", "...."]),  # 2 pixels between the runs, not pixel 2
        ("4 2 0 1", ["..#.", ".#..", ".#.."]),  # two runs may touch
    ],
)
def test_hand_computed_codes(text, rows):
    expected = np.array([[cell == "#" for cell in row] for row in rows])
    np.testing.assert_array_equal(decode_runs(text, height=3, width=4), expected)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["....", "....", "...."], "-1"),
        (["#...", "....", "...."], "0 1"),
        (["####", "####", "####"], "0 12"),  # the reference encoder of the challenge loses a run that ends here
        (["....", "....", "...#"], "11 1"),
        ([".#..", "....", "#..."], "2 2"),
        (["..#.", ".#..", ".#.."], "4 3"),
        (["####", "....", "...."], "0 1 2 1 2 1 2 1"),
    ],
)
def test_hand_computed_masks(rows, text):
    assert encode_runs(np.array([[cell == "#" for cell in row] for row in rows])) == text


@pytest.mark.parametrize("seed", range(60))
def test_round_trips_agree_with_slow_loops(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 20, 2)
    mask = rng.random((height, width)) < rng.choice([0.0, 0.05, 0.5, 0.95, 1.0])
    text = encode_runs(mask)
    assert text == slow_encode(mask)
    np.testing.assert_array_equal(decode_runs(text, height=height, width=width), mask)


@pytest.mark.parametrize("seed", range(60))
def test_any_valid_text_decodes_as_in_a_slow_loop(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 20, 2))
    numbers, left = [], height * width
    while left and rng.random() < 0.9:
        offset = int(rng.integers(0, left))
        length = int(rng.integers(1, left - offset + 1))
        numbers += [offset, length]
        left -= offset + length
    text = "  ".join(map(str, numbers)) or "-1"
    np.testing.assert_array_equal(
        decode_runs(f" {text}\n", height=height, width=width), slow_decode(text, height, width)
    )


def test_a_real_code_fills_a_plausible_shape():
    # The example of the challenge's data page: runs that start about a row higher in each column.
    text = "387620 23 996 33 986 43 977 51 968 58 962 65 956 70 952 74 949 76 946 79"
    mask = decode_runs(text, height=1024, width=1024)
    assert mask.sum() == 23 + 33 + 43 + 51 + 58 + 65 + 70 + 74 + 76 + 79
    rows, columns = np.nonzero(mask)
    assert (columns.min(), columns.max()) == (387620 // 1024, 387620 // 1024 + 9)
    assert (rows.min(), rows.max()) == (517, 595)
    assert encode_runs(mask) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no run"),
        ("   ", "no run"),
        ("5", "1 numbers, but offsets and lengths come in pairs"),
        ("1 2 3", "3 numbers"),
        ("-1 2", "number 1 is '-1'"),
        ("-1 -1", "number 1 is '-1'"),
        ("1 2 -1 2", "number 3 is '-1'"),  # a step back would overlap the run before
        ("1 -2", "number 2 is '-2'"),
        ("1 0", "run 1 has the length 0"),
        ("1 2 3 0", "run 2 has the length 0"),
        ("1.0 2", "number 1 is '1.0'"),
        ("nan nan", "number 1 is 'nan'"),
        ("one two", "number 1 is 'one'"),
        ("1,2", "number 1 is '1,2'"),
        ("1_0 2", "number 1 is '1_0'"),
        ("+1 2", r"number 1 is '\+1'"),
        ("\u0663 2", "number 1 is"),
        ("0 13", "ends at pixel 13 of 3 x 4 = 12"),
        ("12 1", "ends at pixel 13"),
        ("2 4 5 2", "ends at pixel 13"),
        ("999999999999 1", "ends at pixel 1000000000000 of"),
        ("1 " + "9" * 5000, "number 2 is '99999999999999999999', not a whole number"),
    ],
)
def test_malformed_texts_are_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        decode_runs(text, height=3, width=4)
    assert "\n" not in str(error.value)
