"""Preparing full-size originals: scaled decoding on all processors against plain decoding and resizing on one.

Our side is the whole preparation, with journal, checksums and table; the other is what the published preparation
does to an image, and nothing else.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import both_clocks, chosen, parse_options, time_in_turn, write_result
from benchmarks.synthetic import ORIGINAL, ORIGINAL_GRAIN, film
from data_scripts.candidates import Candidate
from data_scripts.command_line import Settings
from data_scripts.images import JPEG_QUALITY
from data_scripts.ledger import Ledger
from data_scripts.preparation import Origin, build_dataset
from mgca_lib.data.tasks import CHEXPERT_LABELS

SIZE = 256
TARGET = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; writes ``prepare_images.json``."""
    options = parse_options(__doc__, arguments)
    count, shrink = options.pick((16, 1), (2, 4))
    height, width = (side // shrink for side in ORIGINAL)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        raw, out, plain_out = (Path(folder) / name for name in ("raw", "prepared", "plain"))
        raw.mkdir()
        plain_out.mkdir()
        paths = [raw / f"{number}.jpg" for number in range(count)]
        for path in paths:
            Image.fromarray(film(height, width, rng, grain=ORIGINAL_GRAIN)).save(path, "JPEG", quality=95)

        def ours() -> None:
            shutil.rmtree(out, ignore_errors=True)
            _prepare(paths, raw, out, workers=options.threads)

        def plain() -> None:
            for path in paths:
                _decode_and_resize(path, plain_out / path.name)

        seconds = time_in_turn({"preparation": ours, "plain": plain}, options)
        kilobytes = sum(path.stat().st_size for path in paths) / count / 1e3
    taken = chosen(seconds, options)
    write_result(
        "prepare_images",
        options,
        claim="Preparing full-size originals is so many times faster than decoding each fully and resizing it.",
        ratio=taken["plain"] / taken["preparation"],
        target=TARGET,
        medians={
            **both_clocks(seconds),
            "originals a second": count / taken["preparation"],
            "originals a second, plain": count / taken["plain"],
            "times less processor time": seconds["plain"].processor / seconds["preparation"].processor,
            "KB of an original": kilobytes,
        },
        notes={"originals": count, "height": height, "width": width, "workers": options.threads},
    )
    return 0


def _prepare(paths: Sequence[Path], raw: Path, out: Path, *, workers: int) -> None:
    candidates = [
        Candidate(
            image_id=path.stem,
            patient_id=path.stem,
            study_id=path.stem,
            split="train",
            path=path,
            source=path.name,
            file="table.csv",
            rows=(row + 2,),
            stored=path.stem,
            labels=dict.fromkeys(CHEXPERT_LABELS, 0.0),
            view="PA",
            sentences=("no acute process",),
        )
        for row, path in enumerate(paths)
    ]
    build_dataset(
        candidates,
        Ledger(rows_in=len(paths)),
        root=raw,
        phantom=True,
        out=out,
        origin=Origin("benchmark", "1", "synthetic", "Apache-2.0"),
        options={},
        settings=Settings(size=SIZE, workers=workers, quiet=True),
    )


def _decode_and_resize(source: Path, target: Path) -> None:
    with Image.open(source) as picture:
        grey = picture.convert("L")
    shrink = SIZE / max(grey.size)
    small = grey.resize((round(grey.width * shrink), round(grey.height * shrink)), Image.Resampling.BOX)
    small.save(target, "JPEG", quality=JPEG_QUALITY)


if __name__ == "__main__":
    sys.exit(main())
