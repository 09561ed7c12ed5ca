"""What all benchmarks share: timing two sides in turn, measuring memory, naming the hardware, writing the result.

The sides of a comparison are timed in turn, repeat by repeat, so that a busy moment of the computer hits both; the
median of the repeats counts. Two clocks run: the one on the wall, and the processor seconds that this process used,
which on a computer shared with others says more.
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from mgca_lib.run import git_commit, hardware, package_versions

RESULTS = Path(__file__).parent / "results"
KEYS = ("claim", "ratio", "target", "medians", "repeats", "hardware", "versions", "commit")
NOT_HERE = 3  # exit code of a benchmark that this computer cannot run

Clock = Literal["wall", "processor"]


@dataclass(frozen=True)
class Options:
    """What every benchmark can be told.

    Attributes:
        quick: Sizes so small that the script runs in seconds and its figures mean nothing.
        repeats: Timed rounds, after one that is not timed.
        threads: Threads of torch.
        clock: Which clock the ratio is taken from.
        out: Folder of the result.
    """

    quick: bool
    repeats: int
    threads: int
    clock: Clock
    out: Path

    def pick(self, usual: Any, quick: Any) -> Any:
        """Return ``usual``, or ``quick`` in quick mode."""
        return quick if self.quick else usual


@dataclass(frozen=True)
class Seconds:
    """Median seconds of one side, by both clocks."""

    wall: float
    processor: float


@dataclass(frozen=True)
class Peak:
    """What a call allocated on the CPU at its highest.

    Attributes:
        bytes: Most bytes at once, beyond what was there before.
        large: Most tensors at once of at least the size asked for.
    """

    bytes: int
    large: int


def parse_options(
    description: str, arguments: Sequence[str] | None, *, repeats: int = 5, threads: int | None = None
) -> Options:
    """Parse the command line of a benchmark, and set torch's threads.

    Args:
        description: Its first line is shown by ``--help``.
        arguments: ``None``: those of this process.
        repeats: Timed rounds, unless told otherwise.
        threads: Threads of torch, unless told otherwise; ``None``: one for each processor.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; figures mean nothing")
    parser.add_argument("--repeats", type=int, default=repeats, metavar="N", help=f"timed rounds (default {repeats})")
    parser.add_argument(
        "--threads", type=int, default=threads or os.cpu_count(), metavar="N", help="of torch (default %(default)s)"
    )
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="clock that the ratio is of")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the result (default benchmarks/results)")
    parsed = parser.parse_args(arguments)
    if parsed.repeats < 1 or parsed.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    if parsed.quick and parsed.out is None:
        parser.error("--quick needs --out, so that its figures do not take the place of real ones")
    torch.set_num_threads(parsed.threads)
    return Options(
        quick=parsed.quick,
        repeats=1 if parsed.quick else parsed.repeats,
        threads=parsed.threads,
        clock=parsed.clock,
        out=parsed.out or RESULTS,
    )


def time_in_turn(
    sides: Mapping[str, Callable[[], object]], options: Options, *, device: torch.device | None = None
) -> dict[str, Seconds]:
    """Time the sides in turn, ``repeats`` times, after one round that does not count.

    Args:
        sides: What to call, by name.
        options: Says how often.
        device: A GPU to wait for before the clock is read.

    Returns:
        Medians by name.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for repeat in range(options.repeats + 1):
        for name, call in sides.items():
            gc.collect()
            seconds = _time(call, device)
            if repeat:
                taken[name].append(seconds)
    return {
        name: Seconds(*(statistics.median(part) for part in zip(*values, strict=True)))
        for name, values in taken.items()
    }


def chosen(seconds: Mapping[str, Seconds], options: Options) -> dict[str, float]:
    """Return the medians by the clock that was asked for."""
    return {name: getattr(one, options.clock) for name, one in seconds.items()}


def both_clocks(seconds: Mapping[str, Seconds]) -> dict[str, float]:
    """Return all medians under names that say what they are, for the result."""
    found = {}
    for name, one in seconds.items():
        found[f"{name}, wall seconds"] = one.wall
        found[f"{name}, processor seconds"] = one.processor
    return found


def peak_memory(call: Callable[[], object], *, large: int) -> Peak:
    """Watch the allocator during a call, scratch space inside torch's operators included.

    Args:
        call: What to run; on the CPU, and here on one thread, since every thread has scratch space of its own.
        large: Bytes from which on a tensor counts as large.

    >>> squares = peak_memory(lambda: torch.ones(100, 100) + torch.ones(100, 100), large=40_000)
    >>> squares.bytes, squares.large
    (120000, 3)
    """
    gc.collect()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            call()
    finally:
        torch.set_num_threads(threads)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = count = most_large = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        size = event.nbytes()
        now += size
        count += (size >= large) - (-size >= large)
        most, most_large = max(most, now), max(most_large, count)
    return Peak(bytes=most, large=most_large)


def matrix_product(
    size: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16, times: int = 1
) -> tuple[Callable[[], None], int]:
    """Return a call that multiplies two square matrices ``times`` times, and its floating point operations."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)

    def multiply() -> None:
        for _ in range(times):
            torch.mm(left, right, out=product)

    return multiply, times * 2 * size**3


def write_result(
    name: str,
    options: Options,
    *,
    claim: str,
    ratio: float,
    target: float,
    medians: Mapping[str, Any],
    at_most: bool = False,
    repeats: int | None = None,
    device: torch.device | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Print the medians and, last, the ratio; write ``NAME.json``.

    Args:
        name: Name of the result.
        options: Repeats, threads, clock and folder.
        claim: One sentence that says what the ratio is of.
        ratio: The figure that the claim is about.
        target: What it should reach.
        medians: Figures behind the ratio, names with units; dictionaries for curves.
        at_most: The ratio should not exceed the target, instead of reach it.
        repeats: How often it was measured, where that is not how often the options say.
        device: GPU that was measured.
        notes: What a reader must know of the setting.

    Returns:
        Path of the file.
    """
    root = Path(__file__).parents[1]
    machine = hardware(device or torch.device("cpu")) | {
        "threads": options.threads,
        "load": round(os.getloadavg()[0], 2),
    }
    content = {
        "claim": claim,
        "ratio": _rounded(ratio),
        "target": target,
        "at_most": at_most,
        "medians": _rounded(medians),
        "repeats": options.repeats if repeats is None else repeats,
        "clock": options.clock,
        "quick": options.quick,
        "notes": dict(notes or {}),
        "hardware": machine,
        "versions": package_versions(),
        "commit": git_commit(root),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    print(f"\n{claim}")
    print(f"on {machine['processor']}, {options.threads} threads of {machine['cores']} processors{gpu}")
    _print_table(content["medians"])
    wanted, outcome = verdict(ratio, target, at_most)
    print(f"{name}: ratio {content['ratio']:g} (target: {wanted}; {outcome})", flush=True)
    return path


def verdict(ratio: float, target: float, at_most: bool) -> tuple[str, str]:
    """Say in words what a ratio should be, and whether it is.

    >>> verdict(0.37, 0.45, at_most=False)
    ('at least 0.45', 'missed')
    """
    reached = ratio <= target if at_most else ratio >= target
    return f"at {'most' if at_most else 'least'} {target:g}", "reached" if reached else "missed"


def results_table(folder: Path) -> str:
    """Return the results of a folder and its subfolders, one for each further computer, as a table in Markdown.

    One row a claim, with what every computer measured.
    """
    measured: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.rglob("*.json"), key=lambda path: (path.stem, path.parent)):
        result = json.loads(path.read_text(encoding="utf-8"))
        machine = result["hardware"]
        threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''} of {machine['processor']}"
        target, outcome = verdict(result["ratio"], result["target"], result["at_most"])
        cell = f"**{result['ratio']:g}** on {machine['gpu'] or threads}: {outcome}"
        measured.setdefault((result["claim"], target), []).append(cell)
    rows = [f"| {claim} | {target} | {'<br>'.join(cells)} |" for (claim, target), cells in measured.items()]
    return "\n".join(["| Claim | Target | Measured |", "|---|---|---|", *rows])


def _time(call: Callable[[], object], device: torch.device | None) -> tuple[float, float]:
    wait = torch.cuda.synchronize if device is not None and device.type == "cuda" else (lambda: None)
    wait()
    wall, processor = time.perf_counter(), time.process_time()
    call()
    wait()
    return time.perf_counter() - wall, time.process_time() - processor


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(part) for key, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _print_table(medians: Mapping[str, Any], indent: str = "  ") -> None:
    for name, value in medians.items():
        if isinstance(value, Mapping):
            print(f"{indent}{name}:")
            _print_table(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value:,}" if isinstance(value, int) else f"{indent}{name}: {value:g}")
