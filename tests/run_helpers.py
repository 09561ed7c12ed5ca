"""Pretraining runs in child processes: one that may be killed, or several that talk to each other over gloo."""

import functools
import json
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from mgca_lib.training_state import Pretraining

CLOCK = {"seconds", "pairs_per_second"}


def timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """A history without what the clock says."""
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in history]


def assert_same_run(one: Pretraining, two: Pretraining) -> None:
    """Weights, optimiser state and history, bit for bit; only the clock may differ."""
    for name in ("best/model.safetensors", "last/model.safetensors", "last/state.safetensors", "last/config.json"):
        assert (one.last.parent / name).read_bytes() == (two.last.parent / name).read_bytes(), name
    assert timeless(one.history) == timeless(two.history)
    for run in (one, two):
        finished = json.loads((run.last.parent / "finished.json").read_text())
        assert finished["history"] == run.history == json.loads((run.last.parent / "history.json").read_text())


def start_child(work: Callable[..., None], *arguments: Any) -> multiprocessing.Process:
    """Start ``work`` in a forked process, which exits with 1 after any error."""

    def guarded() -> None:
        try:
            work(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=guarded)
    process.start()
    return process


def in_child(work: Callable[..., None], *arguments: Any) -> int:
    """Run ``work`` in a forked process and return its exit code: minus the signal that killed it."""
    return wait_for(start_child(work, *arguments))


def wait_for(process: multiprocessing.Process) -> int:
    """Return the exit code of a child, which has two minutes."""
    process.join(timeout=120)
    if process.is_alive():
        process.kill()
        pytest.fail("the child did not end")
    return process.exitcode


def in_processes(count: int, work: Callable[..., None], *arguments: Any) -> list[int]:
    """Run ``work(rank, ...)`` in ``count`` forked processes joined by gloo; returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def joined(rank: int) -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(1)
        work(rank, *arguments)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    return [wait_for(child) for child in [start_child(joined, rank) for rank in range(count)]]


def die_at(owner: Any, name: str, number: int, *, halfway: Callable[..., None] | None = None) -> None:
    """Let this process be killed at the ``number``-th call of a function, after ``halfway`` was called instead."""
    original, calls = getattr(owner, name), []

    @functools.wraps(original)
    def dying(*arguments: Any, **settings: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            if halfway is not None:
                halfway(*arguments, **settings)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **settings)

    setattr(owner, name, dying)
