"""The loader: pairs a second that reach the training process, and what that says about twelve loader processes.

One side is a ``DataLoader`` with a loader process for each processor of this computer, set up as pretraining sets it
up; the other reads the same batches in the training process itself. A computer with fewer than twelve processors
cannot show twelve loader processes, so the figure is extrapolated: twelve times what one of them delivers here, or
what the training process can take in, whichever is less. That assumes a free processor for each.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from benchmarks.harness import both_clocks, parse_options, time_in_turn, write_result
from benchmarks.synthetic import STORED, pairs_of, report_lengths, write_dataset
from mgca_lib.config import load_profile
from mgca_lib.data.pairs import EpochBatches

WORKERS, NEEDED = 12, 2500.0  # pairs a second, what a fast GPU takes
TARGET = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; writes ``data_loader.json``."""
    options = parse_options(__doc__, arguments, threads=1)
    config = load_profile("paper")
    films, epochs, batch_size = options.pick((512, 12, config.training.batch_size), (8, 1, 4))
    workers = min(WORKERS, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        studies = write_dataset(Path(folder), lengths=report_lengths(films), height=STORED[0], width=STORED[1])
        pairs = pairs_of(studies, config.model)
        # Several epochs in one, so that all loader processes are busy for most of the time.
        order = [
            batch
            for epoch in range(epochs)
            for batch in EpochBatches(size=films, batch_size=batch_size, seed=0, epoch=epoch)
        ]

        def loader(processes: int) -> DataLoader:
            return DataLoader(
                pairs,
                batch_sampler=order,
                collate_fn=pairs.collate,
                num_workers=processes,
                pin_memory=torch.cuda.is_available(),
                persistent_workers=processes > 0,  # started in the round that does not count
            )

        several, none = loader(workers), loader(0)
        seconds = time_in_turn(
            {"loader processes": lambda: _read(several), "training process alone": lambda: _read(none)}, options
        )
    count = len(order) * batch_size
    delivered = count / seconds["loader processes"].wall
    # The clock of this process does not count what its loader processes do.
    taken_in = count / seconds["loader processes"].processor
    extrapolated = min(WORKERS * delivered / workers, taken_in)
    write_result(
        "data_loader",
        options,
        claim=f"{WORKERS} loader processes deliver so many times the {NEEDED:,.0f} pairs a second that a fast GPU "
        f"takes (extrapolated from {workers}).",
        ratio=extrapolated / NEEDED,
        target=TARGET,
        medians={
            **both_clocks(seconds),
            "pairs a second, measured": delivered,
            "pairs a second of one loader process": delivered / workers,
            "pairs a second that the training process can take in": taken_in,
            f"pairs a second of {WORKERS} loader processes, extrapolated": extrapolated,
            "pairs a second without loader processes": count / seconds["training process alone"].wall,
        },
        notes={
            "loader processes": workers,
            "pairs of a round": count,
            "batch": batch_size,
            "files": "in the operating system's cache",
            "clock": "wall, whatever was asked for; processor seconds are those of the training process",
        },
    )
    return 0


def _read(loader: DataLoader) -> None:
    for _ in loader:
        pass


if __name__ == "__main__":
    sys.exit(main())
