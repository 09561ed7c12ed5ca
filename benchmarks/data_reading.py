"""Reading a prepared dataset: images a second on one core.

One side reads a stored film of 256 px as pretraining does: file, decoding, padding to a square, random crop, grey
mapping, word pieces. The other does what the published code does in every epoch: it decodes an original of
2544 x 3056 pixels at full size and resizes it.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import Options, both_clocks, chosen, parse_options, time_in_turn, write_result
from benchmarks.synthetic import ORIGINAL, ORIGINAL_GRAIN, STORED, film, pairs_of, report_lengths, write_dataset
from mgca_lib.config import load_profile
from mgca_lib.data.transforms import ImageTransform

TARGET = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; writes ``data_reading.json``."""
    options = parse_options(__doc__, arguments, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        _compare(Path(folder), options)
    return 0


def _compare(folder: Path, options: Options) -> None:
    model = load_profile("paper").model
    count, originals = options.pick((512, 6), (8, 1))
    studies = write_dataset(folder / "prepared", lengths=report_lengths(count), height=STORED[0], width=STORED[1])
    pairs = pairs_of(studies, model)
    stored_bytes = sum(studies.image_path(row).stat().st_size for row in range(count)) / count
    rng = np.random.default_rng(0)
    paths = [folder / f"original{number}.jpg" for number in range(originals)]
    for path in paths:
        Image.fromarray(film(*options.pick(ORIGINAL, STORED), rng, grain=ORIGINAL_GRAIN)).save(path, "JPEG", quality=95)
    transform = ImageTransform(model.stored_size, model.image_size, "crop")

    def read() -> None:
        for row in range(count):
            pairs[row, 0]

    def decode_and_resize() -> None:
        for path in paths:
            with Image.open(path) as picture:
                transform(picture)

    seconds = time_in_turn({"read": read, "decode and resize": decode_and_resize}, options)
    taken = chosen(seconds, options)
    write_result(
        "data_reading",
        options,
        claim="One core reads so many thousand images a second from a prepared dataset.",
        ratio=count / taken["read"] / 1000,
        target=TARGET,
        medians={
            **both_clocks(seconds),
            "images a second": count / taken["read"],
            "originals a second, decoded and resized": originals / taken["decode and resize"],
            "times faster": count / taken["read"] * taken["decode and resize"] / originals,
            "KB of a stored film": stored_bytes / 1e3,
            "KB of an original": sum(path.stat().st_size for path in paths) / originals / 1e3,
        },
        notes={"images": count, "originals": originals, "files": "in the operating system's cache"},
    )


if __name__ == "__main__":
    sys.exit(main())
