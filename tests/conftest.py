"""What every test shares: no network, one thread, and where the real sample files lie."""

import os
from pathlib import Path

# Set before torch and transformers are imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch

import mgca_lib.torchvision_operators  # noqa: F401  must come before torchvision and timm

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root folder."""
    return REPOSITORY


@pytest.fixture(scope="module")
def one_thread():
    """UMAP raises the number of threads; a forked process cannot wake its parent's, and another number changes bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real sample files: ``$MGCA_SHARED``, else ``../shared`` beside the repository."""
    folder = Path(os.environ.get("MGCA_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no real sample files: {folder} is absent; set MGCA_SHARED to their folder")
    return folder
