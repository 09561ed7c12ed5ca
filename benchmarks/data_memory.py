"""Memory against the number of pairs, from 1,000 to 1,000,000: in a loader process, and in the process that loads.

There are many loader processes, so it is their memory that must not grow: what they share with the process that
started them is there once. Each size is measured once, in a process of its own, because memory that was once given
to Python does not come back. All rows name the same film.
"""

import gc
import hashlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import parse_options, write_result
from benchmarks.synthetic import STORED, pairs_of, report_lengths, report_words, write_dataset
from mgca_lib.config import load_profile
from mgca_lib.data.pairs import PairImages
from mgca_lib.data.studies import CARD_FILE, TABLE_FILE, load_studies

SIZES = (1_000, 10_000, 100_000, 1_000_000)
TARGET = 1.25  # a thousand times the pairs, a quarter more memory at most
READ = 1000  # pairs, at random
PRIVATE = "private MB of a loader process"
ONE_SIZE = "--one-size"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; writes ``data_memory.json``."""
    options = parse_options(__doc__, arguments, threads=1)
    curve = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_dataset(root, lengths=report_lengths(1), height=STORED[0], width=STORED[1])
        for size in options.pick(SIZES, (50, 100)):
            _write_table(root, size)
            command = [sys.executable, "-m", "benchmarks.data_memory", ONE_SIZE, folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            curve[f"{size:,} pairs"] = json.loads(done.stdout)
    first, *_, last = curve.values()
    write_result(
        "data_memory",
        options,
        claim=f"A loader process of {list(curve)[-1]} holds so many times the private memory of one of "
        f"{list(curve)[0]}.",
        ratio=last[PRIVATE] / first[PRIVATE],
        target=TARGET,
        at_most=True,
        repeats=1,
        medians=curve,
        notes={"read": f"{READ} pairs at random in the loader process", "sizes": "each in a process of its own, once"},
    )
    return 0


def measure(root: Path) -> dict[str, float]:
    """Load a dataset, read some of it in a forked process, and return what that cost."""
    process = psutil.Process()
    before, started = process.memory_info().rss, time.perf_counter()
    pairs = pairs_of(load_studies(root), load_profile("paper").model)
    gc.collect()
    loaded, seconds = process.memory_info().rss, time.perf_counter() - started
    receive, send = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=_read, args=(pairs, send))
    worker.start()
    private = receive.recv()
    worker.join()
    return {
        PRIVATE: private / 1e6,
        "MB that loading takes, shared by all": (loaded - before) / 1e6,
        "bytes a pair": (loaded - before) / len(pairs),
        "seconds to load": seconds,
    }


def _read(pairs: PairImages, send: Connection) -> None:
    """Read random pairs as a loader process does; send how much memory it shares with nobody."""
    for rows in np.random.default_rng(0).integers(len(pairs), size=(READ // 50, 50)):
        pairs.collate([pairs[int(row), 0] for row in rows])
    # Python's collector writes to every object that it visits, and what is written to is shared no more: the worst
    # that a loader process comes to.
    gc.collect()
    send.send(psutil.Process().memory_full_info().uss)
    send.close()


def _write_table(root: Path, size: int) -> None:
    """Write the table of a prepared dataset anew, with ``size`` rows of 1,000 different reports."""
    rng = np.random.default_rng(0)
    few = pq.read_table(root / TABLE_FILE).slice(0, 1)
    texts = pa.array([report_words(length, rng) for length in report_lengths(min(size, 1000))])
    which = pa.array(np.arange(size) % len(texts))
    columns = {name: few[name].take(pa.array(np.zeros(size, np.int64))) for name in few.column_names}
    for name in ("image_id", "patient_id", "study_id"):
        columns[name] = pa.array(np.arange(size)).cast(pa.string())
    columns["findings"] = texts.take(which)
    columns["sentences"] = pa.ListArray.from_arrays(np.arange(len(texts) + 1, dtype=np.int32), texts).take(which)
    pq.write_table(pa.table(columns, schema=few.schema), root / TABLE_FILE)
    card = json.loads((root / CARD_FILE).read_text(encoding="utf-8"))
    card["table_sha256"] = hashlib.sha256((root / TABLE_FILE).read_bytes()).hexdigest()
    (root / CARD_FILE).write_text(json.dumps(card), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == [ONE_SIZE]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        sys.exit(main())
