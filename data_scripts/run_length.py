"""Run-length coded masks of the SIIM-ACR pneumothorax challenge.

A mask is a text ``offset length offset length ...``. The pixels are counted column by column: down the first column,
then down the second. An offset counts from the end of the run before it, the first one from the first pixel; this
differs from other challenges, whose starts are absolute and count from 1. The text ``-1`` is a mask without a pixel.
"""

from itertools import accumulate

import numpy as np

NO_RUNS = "-1"
"""The text of a mask without a pixel."""


def decode_runs(text: str, *, height: int, width: int) -> np.ndarray:
    """Decode a mask.

    Args:
        text: ``"-1"``, or pairs of an offset (0 or more) and a length (1 or more), apart by blanks.
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        bool ``(height, width)``.

    Raises:
        ValueError: the text is not such a code, or a run ends behind the last pixel; one line, without the place.

    >>> decode_runs("1 2 3 1", height=3, width=3).astype(int)
    array([[0, 0, 1],
           [1, 0, 0],
           [1, 0, 0]])
    """
    numbers = [] if text.strip() == NO_RUNS else _read_numbers(text)
    # The numbers are the steps from edge to edge: start, end, start, end, ...
    edges = list(accumulate(numbers))
    pixels = height * width
    if edges and edges[-1] > pixels:
        raise ValueError(f"the last run ends at pixel {edges[-1]} of {height} x {width} = {pixels}")
    starts, ends = (
        np.bincount(np.array(part, dtype=np.int64), minlength=pixels + 1) for part in (edges[::2], edges[1::2])
    )
    return np.cumsum(starts - ends)[:pixels].astype(bool).reshape(width, height).T


def encode_runs(mask: np.ndarray) -> str:
    """Encode a mask as :func:`decode_runs` reads it, in as few runs as possible.

    Args:
        mask: bool ``(H, W)``.

    >>> encode_runs(np.array([[0, 0, 1], [1, 0, 0], [1, 0, 0]], dtype=bool))
    '1 2 3 1'
    """
    column_by_column = np.asarray(mask, dtype=bool).T.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(column_by_column, prepend=0, append=0))
    return " ".join(str(step) for step in np.diff(edges, prepend=0)) or NO_RUNS


def _read_numbers(text: str) -> list[int]:
    parts = text.split()
    if not parts:
        raise ValueError("holds no run; a mask without a pixel is -1")
    for number, part in enumerate(parts, start=1):
        if not (part.isascii() and part.isdigit() and len(part) <= 12):
            raise ValueError(f"number {number} is {part[:20]!r}, not a whole number, 0 or more, of at most 12 digits")
    if len(parts) % 2:
        raise ValueError(f"holds {len(parts)} numbers, but offsets and lengths come in pairs")
    numbers = [int(part) for part in parts]
    if 0 in numbers[1::2]:
        raise ValueError(f"run {numbers[1::2].index(0) + 1} has the length 0")
    return numbers
