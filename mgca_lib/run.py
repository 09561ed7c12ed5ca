"""One run of a notebook: settings, seeds, device, data, figures, and the numbers it leaves behind."""

import json
import math
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from mgca_lib.config import Config, Precision, load_profile
from mgca_lib.course.parameters import check_injected_parameters
from mgca_lib.data.studies import Studies, load_studies

METRICS_FILE = "metrics.json"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "scikit-learn", "numpy", "umap-learn")


class RunError(ValueError):
    """A run cannot start or go on; the message names the parameter or folder and what to do."""


@dataclass(repr=False)
class Run:
    """What :func:`start_run` hands to a notebook.

    Attributes:
        name: Name of the notebook, for example ``"03_instance_alignment"``.
        config: The profile's settings.
        seed: The one seed.
        device: Where tensors go.
        root: The project's folder.
        data_root: Holds ``raw/`` and ``prepared/``.
        output_dir: Figures and ``metrics.json`` of this notebook.
        metrics: What :meth:`record` collected.
    """

    name: str
    config: Config
    seed: int
    device: torch.device
    root: Path
    data_root: Path
    output_dir: Path
    metrics: dict[str, float | dict[str, float]] = field(default_factory=dict)
    _data: dict[str, dict[str, Any]] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)

    @property
    def profile(self) -> str:
        """Name of the profile."""
        return self.config.profile

    @property
    def raw(self) -> Path:
        """Folder of the raw datasets."""
        return self.data_root / "raw"

    @property
    def pretraining(self) -> Path:
        """Folder of the pretraining run that belongs to this run's outputs (notebook 06 writes it)."""
        return self.output_dir.parent / "06_pretraining" / "pretraining"

    def studies(self, name: str) -> Studies:
        """Load the prepared dataset ``data_root/prepared/NAME`` and note it in the provenance.

        Raises:
            RunError: it does not exist yet; or it is restricted and the outputs would lie where git sees them.
            DatasetError: it breaks the contract.
        """
        folder = self.data_root / "prepared" / name
        if not folder.is_dir():
            raise RunError(
                f"{_short(folder, self.root)}: no such prepared dataset; run notebook 01_data_preparation with "
                f"PROFILE = {self.profile!r} first, or prepare your own data there (README, section The data)"
            )
        studies = load_studies(folder)
        if studies.card.restricted and seen_by_git(self.output_dir):
            raise RunError(
                f"OUTPUT_DIR = {str(self.output_dir)!r}: dataset {name!r} is restricted, so its outputs must lie in a "
                "folder that git ignores, such as outputs/"
            )
        self._data[name] = {
            "sha256": studies.card.table_sha256,
            "source": studies.card.source,
            "restricted": studies.card.restricted,
        }
        return studies

    def record(self, name: str, value: float | Mapping[str, float]) -> None:
        """Note a number, or a mean with its interval, under a flat name.

        Args:
            name: For example ``"chexpert/auroc/1%/mgca"``.
            value: A finite number, or ``{"mean", "low", "high", "n"}``.

        Raises:
            RunError: the value is not of that form, or the name is taken.
        """
        if name in self.metrics:
            raise RunError(f"metric {name!r} is recorded twice")
        parts = dict(value) if isinstance(value, Mapping) else {"value": value}
        if isinstance(value, Mapping) and set(parts) != {"mean", "low", "high", "n"}:
            raise RunError(f"metric {name!r}: expected the keys mean, low, high, n; found {sorted(parts)}")
        for key, number in parts.items():
            if isinstance(number, str) or number is None or not math.isfinite(float(number)):
                raise RunError(f"metric {name!r}: {key} is {number}, which is not a finite number")
            parts[key] = int(number) if key == "n" else float(number)
        self.metrics[name] = parts if isinstance(value, Mapping) else parts["value"]

    def show(self, figure: Figure, name: str, caption: str) -> None:
        """Save a figure as ``output_dir/NAME.png`` and show it with its caption, which is also its alt text."""
        path = self.output_dir / f"{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
        figure.clear()
        from IPython.display import Image, Markdown, display

        display(Image(data=path.read_bytes(), alt=caption), Markdown(f"*{caption}*"))

    def finish(self, *, question: str, headline: str) -> Path:
        """Write ``metrics.json`` and return its path.

        Args:
            question: The notebook's title question, for the table at the end of the course.
            headline: Name of the recorded metric that answers it best.

        Raises:
            RunError: no metric of that name was recorded.
        """
        if headline not in self.metrics:
            raise RunError(f"headline {headline!r}: no such metric; recorded are {', '.join(self.metrics) or 'none'}")
        content = {
            "metrics": self.metrics,
            "provenance": {
                "notebook": self.name,
                "question": question,
                "headline": headline,
                "profile": self.profile,
                "seed": self.seed,
                "seconds": round(time.perf_counter() - self._started, 1),
                "peak_memory_gb": round(_peak_memory() / 2**30, 2),
                "commit": git_commit(self.root),
                "versions": package_versions(),
                "data": self._data,
                "hardware": hardware(self.device),
                "precision": training_precision(self.config.training.precision),
            },
        }
        path = self.output_dir / METRICS_FILE
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(part, path)
        return path

    def __repr__(self) -> str:
        return f"Run({self.name!r}, profile={self.profile!r}, seed={self.seed})"  # no paths: outputs are shared

    def _repr_markdown_(self) -> str:
        rows = {
            "profile": self.profile,
            "seed": self.seed,
            "device": hardware(self.device)["gpu"] or f"CPU, {os.cpu_count()} cores",
            "data": _short(self.data_root, self.root),
            "outputs": _short(self.output_dir, self.root),
            "commit": git_commit(self.root) or "not a git checkout",
            **package_versions(),
        }
        lines = [f"| {name} | {value} |" for name, value in rows.items()]
        return "\n".join(["| run | |", "|---|---|", *lines])


def start_run(name: str, *, profile: str, seed: int, data_root: str = "", output_dir: str = "", **settings: Any) -> Run:
    """Validate the parameters of a notebook, seed everything, and make its output folder.

    Args:
        name: Name of the notebook, without suffix.
        profile: Key of :data:`mgca_lib.config.PROFILES`.
        seed: Seeds Python, NumPy and torch; not negative.
        data_root: Holds ``raw/`` and ``prepared/``; empty: ``data/PROFILE`` of the project.
        output_dir: Empty: ``outputs/PROFILE/NAME`` of the project. Relative paths count from the project.
        **settings: Settings of the profile to change.

    Raises:
        RunError: a parameter has the wrong type or range.
        ParameterError: papermill was given a parameter that the notebook does not declare.
        ConfigError: the profile or a setting is unknown.
    """
    check_injected_parameters()
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise RunError(f"SEED = {seed!r}: use a whole number from 0 to {2**31 - 1}")
    for parameter, value in (("DATA_ROOT", data_root), ("OUTPUT_DIR", output_dir)):
        if not isinstance(value, str):
            raise RunError(f"{parameter} = {value!r}: use a path as text, or an empty text for the default")
    config = load_profile(profile, **settings)
    root = find_root()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - umap-learn and scikit-learn still read the global generator
    torch.manual_seed(seed)
    run = Run(
        name=name,
        config=config,
        seed=seed,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        root=root,
        data_root=root / (data_root or f"data/{profile}"),
        output_dir=root / (output_dir or f"outputs/{profile}/{name}"),
    )
    try:
        run.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"OUTPUT_DIR = {output_dir!r}: the folder cannot be made ({error.strerror})") from None
    return run


def find_root(start: Path | None = None) -> Path:
    """Return the project's folder: the nearest one upwards with ``notebooks/`` and ``pyproject.toml``.

    Raises:
        RunError: there is none.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise RunError(f"{start}: not inside the project; start Jupyter with `make lab` or from the project's folder")


def progress(*, total: int, description: str, initial: int = 0) -> tqdm:
    """Return a progress bar; quiet where nobody watches.

    tqdm prints a line per step into logs and executed notebooks, so the bar shows only in a terminal, or in a
    notebook that a person runs: the batch runs of the course set ``MGCA_PROGRESS=0``.
    """
    watched = os.environ.get("MGCA_PROGRESS", "1") != "0" and ("ipykernel" in sys.modules or sys.stderr.isatty())
    return tqdm(total=total, desc=description, initial=initial, disable=not watched, leave=False)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """Return cores, memory in GB, processor name and GPU name ("" without one)."""
    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
    }


def training_precision(wanted: Precision) -> Literal["bf16", "fp32"]:
    """Return the precision that a training on this computer has.

    Args:
        wanted: The setting ``precision``: ``"auto"`` is bf16 where the device is fast in it.

    >>> training_precision("fp32")
    'fp32'
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():  # cards before Ampere emulate bf16
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = cpu_is_fast_in_bf16()
    return "bf16" if fast else "fp32"


def cpu_is_fast_in_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices faster than fp32: by AMX tiles or by AVX-512 BF16.

    Any other emulates bf16, and is slower in it than in fp32.
    """
    able = torch.cpu.get_capabilities()
    return able.get("amx_bf16", False) or able.get("avx512_bf16", False)


def git_commit(root: Path) -> str:
    """Return the commit of the project, with ``+`` when files differ from it, or ``""`` outside git."""
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def seen_by_git(folder: Path) -> bool:
    """Whether what lies in a folder can get into a git repository: it is in one that does not ignore it.

    Links are followed, since git keeps a link and nothing behind it. Where git cannot say, the answer is yes.
    """
    folder = folder.resolve()
    repository = next((parent for parent in (folder, *folder.parents) if (parent / ".git").exists()), None)
    if repository is None:
        return False
    try:
        command = ["git", "-C", str(repository), "check-ignore", "-q", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode != 0
    except OSError:
        return True


def _peak_memory() -> int:
    """Peak resident memory of this process in bytes; the current one where the system does not keep the peak."""
    try:
        import resource
    except ImportError:
        return psutil.Process().memory_info().rss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = [line.partition(":") for line in information.read_text(encoding="utf-8").splitlines()]
        facts = {name.strip(): value.strip() for name, _, value in lines}
        if "model name" in facts:  # virtual machines often give the maker alone, and generations differ
            generation = f", family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else ""
            return facts["model name"] + generation
    return platform.processor() or platform.machine()


def _short(path: Path, root: Path) -> str:
    """Path relative to the project where it lies inside: outputs must not hold paths of one computer."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
