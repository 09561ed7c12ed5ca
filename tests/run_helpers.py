"""Pretraining runs in child processes: one that may be killed, or several that talk to each other over gloo."""

import contextlib
import ctypes
import functools
import io
import json
import multiprocessing
import os
import resource
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from mgca_lib.config import Config
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


def processor_seconds(work: Callable[..., None], *arguments: Any) -> float:
    """Run ``work`` in a forked process and return the processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert in_child(work, *arguments) == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def killed_after(seconds: float, work: Callable[..., None], *arguments: Any) -> bool:
    """Run ``work`` in a forked process that dies once it has had so much processor time; returns whether it did.

    Processor time, since by the clock a busy computer would kill before the start or after the end. The timer's signal
    has no handler, and so ends the process in the kernel as SIGKILL does, wherever it is.
    """

    def timed() -> None:
        signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-4))
        work(*arguments)

    code = in_child(timed)
    assert code in (0, -signal.SIGPROF)
    return code != 0


def refusal(
    main: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    *,
    file_size: int | None = None,
    privileges: bool = True,
) -> str:
    """Return what a command says in a forked process, where it must end with code 2 and one line.

    Args:
        main: The command.
        arguments: Its words.
        file_size: No file may become larger, bytes: as on a full disk, the write fails and the process lives on.
        privileges: Without them, permissions stop the command even where root runs the tests.
    """
    source, sink = os.pipe()

    def run() -> None:
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        if not privileges and os.geteuid() == 0:
            version_and_process, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            assert ctypes.CDLL(None).capset(version_and_process, none) == 0
        with contextlib.redirect_stderr(io.StringIO()) as shown:
            code = main(arguments)
        os.write(sink, shown.getvalue().encode())
        os._exit(code)

    code = in_child(run)
    os.close(sink)
    with os.fdopen(source) as stream:
        shown = stream.read()
    assert code == 2, shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    return shown


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


def command_words(config: Config, data: Path, out: Path, seed: int, *more: str) -> list[str]:
    """Return the arguments of ``python -m mgca_lib.pretrain`` that spell out every setting."""
    words = ["--data", str(data), "--out", str(out), "--profile", "smoke", "--seed", str(seed), *more]
    for part in ("model", "alignment", "training"):
        for name, value in config.to_dict()[part].items():
            if not isinstance(value, list) and value != "":
                words += [f"--{name}", str(value)]
    return words
