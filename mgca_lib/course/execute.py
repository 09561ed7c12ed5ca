"""Executes one notebook from its ``.py`` file, and says clearly what failed."""

import ast
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from mgca_lib.course.pairing import read_source
from mgca_lib.course.parameters import ParameterError, check_given, check_notebook
from mgca_lib.course.summary import METRICS_FILE

CELL_SECONDS = {"smoke": 120}  # a smoke cell that takes longer hangs
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class ExecutionError(RuntimeError):
    """A notebook did not run to its end; the message names cell and error, and where the part that ran lies."""


def execute(notebook: Path, output_dir: Path, parameters: Mapping[str, Any], *, threads: int) -> float:
    """Execute a notebook and keep the result, whole or partial, as ``output_dir/NAME.ipynb``.

    Args:
        notebook: The ``.py`` file. Its kernel starts in its folder, as in JupyterLab.
        output_dir: Passed to the notebook as ``OUTPUT_DIR``; made when missing.
        parameters: Further parameters by name.
        threads: Processor cores that the notebook may use.

    Returns:
        Seconds from start to end, the start of the kernel included.

    Raises:
        ParameterError: a parameter is unknown, unread or of the wrong type; nothing was run.
        ExecutionError: a cell failed or hung, the kernel died, or ``metrics.json`` is missing.
    """
    content = read_source(notebook)
    given = {**parameters, "OUTPUT_DIR": output_dir.as_posix()}
    try:
        check_given(check_notebook(content), given)
    except ParameterError as error:
        raise ParameterError(f"{notebook.name}: {error}") from None
    output_dir.mkdir(parents=True, exist_ok=True)
    metrics = output_dir / METRICS_FILE
    metrics.unlink(missing_ok=True)
    executed = output_dir / f"{notebook.stem}.ipynb"
    nbformat.write(content, executed)
    profile = str(given.get("PROFILE", ""))
    os.environ.update(_kernel_environment(threads=threads, offline=profile != "paper"))
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(executed.resolve()),
            str(executed.resolve()),
            parameters=given,
            kernel_name="python3",
            progress_bar=False,
            cwd=str(notebook.parent),
            execution_timeout=CELL_SECONDS.get(profile),
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # else it warns of its own transport
        )
    except PapermillExecutionError as error:
        trace = "\n".join(error.traceback) or f"{error.ename}: {error.evalue}"
        problem = f"cell In [{error.exec_count}] failed:\n{error.source}\n\n{_ANSI.sub('', trace)}"
        raise ExecutionError(f"{notebook.name}: {problem}\n\nThe cells that ran: {executed}") from None
    except CellTimeoutError:
        raise ExecutionError(
            f"{notebook.name}: a cell took more than {CELL_SECONDS[profile]} s. The cells that ran: {executed}"
        ) from None
    except DeadKernelError:
        raise ExecutionError(
            f"{notebook.name}: Python died, most often for lack of memory. The cells that ran: {executed}"
        ) from None
    if not metrics.is_file():
        raise ExecutionError(f"{notebook.name}: no {metrics}; one cell must call run.finish()")
    return time.perf_counter() - started


def declared_by(notebook: Path) -> dict[str, Any]:
    """Return names and defaults of a notebook's parameters, from its ``.py`` file.

    Raises:
        ParameterError: as `mgca_lib.course.parameters.check_notebook`; the message names the file.
    """
    try:
        return check_notebook(read_source(notebook))
    except ParameterError as error:
        raise ParameterError(f"{notebook.name}: {error}") from None


def parse_value(text: str, default: Any) -> Any:
    """Read a command-line value with the type of the parameter's default.

    >>> parse_value("3", 42), parse_value("3", "demo"), parse_value("[1, 2]", [])
    (3, '3', [1, 2])
    """
    if isinstance(default, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def free_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def remove_results(root: Path) -> None:
    """Delete what course runs made: ``data/`` and ``outputs/`` of ``smoke`` and ``demo``."""
    for folder in (root / "data", root / "outputs"):
        for profile in ("smoke", "demo"):
            shutil.rmtree(folder / profile, ignore_errors=True)


def _kernel_environment(*, threads: int, offline: bool) -> dict[str, str]:
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = dict.fromkeys(variables, str(threads))
    environment |= {"MGCA_PROGRESS": "0", "TOKENIZERS_PARALLELISM": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return environment | ({"HF_HUB_OFFLINE": "1"} if offline else {})
