"""A notebook's run: parameters, seeds, restricted data, metrics and provenance."""

import getpass
import importlib.metadata
import json
import random
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import tiny_studies

from mgca_lib.config import ConfigError
from mgca_lib.data.studies import DatasetError
from mgca_lib.run import RunError, find_root, git_commit, package_versions, progress, start_run, training_precision


def git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project that the test stands in, and no git repository around it."""
    root = tmp_path / "project"
    (root / "notebooks").mkdir(parents=True)
    (root / "pyproject.toml").write_text("")
    monkeypatch.chdir(root / "notebooks")
    return root


@pytest.fixture
def git_project(project):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(project, "init", "-q")
    (project / ".gitignore").write_text("/outputs/\n/data/\n")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    return project


def start(**settings):
    return start_run("03_instance_alignment", **({"profile": "smoke", "seed": 1} | settings))


def test_folders_by_default_and_as_asked(project, tmp_path):
    run = start()
    assert run.root == project
    assert run.data_root == project / "data/smoke"
    assert run.raw == project / "data/smoke/raw"
    assert run.output_dir == project / "outputs/smoke/03_instance_alignment"
    assert run.output_dir.is_dir()
    assert run.pretraining == project / "outputs/smoke/06_pretraining/pretraining"
    other = start(data_root="mine", output_dir=str(tmp_path / "elsewhere"))
    assert (other.data_root, other.output_dir) == (project / "mine", tmp_path / "elsewhere")


def test_outside_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="not inside the project"):
        start()
    with pytest.raises(RunError, match="not inside the project"):
        find_root(tmp_path)


@pytest.mark.parametrize("seed", [-1, 2**31, 1.0, "42", None, True])
def test_bad_seeds(project, seed):
    with pytest.raises(RunError, match=r"^SEED = .*: use a whole number"):
        start(seed=seed)


@pytest.mark.parametrize(("name", "parameter"), [("data_root", "DATA_ROOT"), ("output_dir", "OUTPUT_DIR")])
@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_bad_paths(project, name, parameter, value):
    with pytest.raises(RunError, match=f"^{parameter} = .*: use a path as text"):
        start(**{name: value})


def test_output_folder_that_cannot_be_made(project):
    (project / "taken").write_text("a file")
    with pytest.raises(RunError, match=r"^OUTPUT_DIR = 'taken': the folder cannot be made"):
        start(output_dir="taken")


def test_bad_profile_and_settings(project):
    with pytest.raises(ConfigError, match="no profile called 'tiny'"):
        start(profile="tiny")
    with pytest.raises(ConfigError, match="unknown setting 'epoch'"):
        start(epoch=1)
    assert start(epochs=5).config.training.epochs == 5


def test_one_seed_decides_all_generators(project):
    def draws(seed):
        start(seed=seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    first, again, other = draws(5), draws(5), draws(6)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_missing_and_broken_datasets(project):
    run = start()
    with pytest.raises(RunError, match=r"data/smoke/prepared/chexpert: no such prepared dataset; run notebook 01"):
        run.studies("chexpert")
    (run.data_root / "prepared/chexpert").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"card\.json"):
        run.studies("chexpert")


def test_restricted_data_demand_an_ignored_output_folder(git_project):
    tiny_studies(git_project / "data/smoke/prepared/mimic_cxr", restricted=True, train=2, valid=2, test=2)
    tiny_studies(git_project / "data/smoke/prepared/open", train=2, valid=2, test=2)
    assert len(start().studies("mimic_cxr")) == 6
    seen_by_git = start(output_dir="figures")
    assert len(seen_by_git.studies("open")) == 6
    with pytest.raises(RunError, match=r"OUTPUT_DIR = .*'mimic_cxr' is restricted"):
        seen_by_git.studies("mimic_cxr")


def test_restricted_data_when_git_cannot_answer(git_project, monkeypatch):
    """A repository that git refuses to read (another owner, no git) is still a repository."""
    tiny_studies(git_project / "data/smoke/prepared/mimic_cxr", restricted=True, train=2, valid=2, test=2)
    run = start()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RunError, match="restricted"):
        run.studies("mimic_cxr")


def test_restricted_data_may_lie_where_a_link_leads_or_outside(git_project, tmp_path):
    """Large disks are linked to, or named; git keeps a link and nothing behind it."""
    tiny_studies(git_project / "data/smoke/prepared/mimic_cxr", restricted=True, train=2, valid=2, test=2)
    (tmp_path / "disk").mkdir()
    (git_project / "linked").symlink_to(tmp_path / "disk")
    for output_dir in ("linked/figures", str(tmp_path / "disk/other")):
        assert len(start(output_dir=output_dir).studies("mimic_cxr")) == 6
    (tmp_path / "away").symlink_to(git_project / "figures")
    with pytest.raises(RunError, match="restricted"):
        start(output_dir=str(tmp_path / "away/there")).studies("mimic_cxr")


def test_restricted_data_without_a_repository(project):
    tiny_studies(project / "data/smoke/prepared/mimic_cxr", restricted=True, train=2, valid=2, test=2)
    assert len(start(output_dir="figures").studies("mimic_cxr")) == 6


BAD_METRICS = [
    float("nan"),
    float("inf"),
    torch.tensor(float("nan")),
    "0.5",
    None,
    {"mean": 1.0},
    {"mean": 1.0, "low": 0.9, "high": 1.1, "n": 3, "std": 0.1},
    {"mean": float("nan"), "low": 0.9, "high": 1.1, "n": 3},
    {"mean": 1.0, "low": None, "high": 1.1, "n": 3},
]


@pytest.mark.parametrize("value", BAD_METRICS, ids=str)
def test_bad_metrics(project, value):
    run = start()
    with pytest.raises(RunError, match=r"^metric 'a/b'"):
        run.record("a/b", value)
    assert run.metrics == {}


def test_metrics_are_recorded_once(project):
    run = start()
    run.record("auroc", 0.5)
    with pytest.raises(RunError, match="'auroc' is recorded twice"):
        run.record("auroc", 0.6)
    assert run.metrics == {"auroc": 0.5}


def test_metrics_file(project):
    tiny_studies(project / "data/smoke/prepared/rsna", train=2, valid=2, test=2)
    run = start(seed=7)
    sha = run.studies("rsna").card.table_sha256
    interval = {"mean": np.float32(0.5), "low": 0.25, "high": torch.tensor(0.75), "n": np.int64(3)}
    run.record("rsna/auroc/1%/mgca", interval)
    run.record("loss", torch.tensor(2.0))
    with pytest.raises(RunError, match="headline 'nope': no such metric; recorded are rsna/auroc/1%/mgca, loss"):
        run.finish(question="Why?", headline="nope")
    path = run.finish(question="Why?", headline="loss")
    assert path == run.output_dir / "metrics.json"
    content = json.loads(path.read_text())
    assert set(content) == {"metrics", "provenance"}
    assert content["metrics"] == {
        "rsna/auroc/1%/mgca": {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 3},
        "loss": 2.0,
    }
    provenance = content["provenance"]
    fixed = {key: provenance[key] for key in ("notebook", "question", "headline", "profile", "seed", "commit")}
    assert fixed == {
        "notebook": "03_instance_alignment",
        "question": "Why?",
        "headline": "loss",
        "profile": "smoke",
        "seed": 7,
        "commit": "",
    }
    assert provenance["data"] == {"rsna": {"sha256": sha, "source": "phantom", "restricted": False}}
    assert provenance["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert provenance["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(provenance["hardware"]) == {"processor", "cores", "memory_gb", "gpu"}
    assert provenance["precision"] == "fp32"  # that of the profile smoke
    assert 0 <= provenance["seconds"] < 600
    assert 0.05 < provenance["peak_memory_gb"] < 100
    assert list(run.output_dir.iterdir()) == [path]  # no temporary file is left


def test_provenance_names_no_place_and_no_person(project, tmp_path):
    tiny_studies(tmp_path / "far/prepared/rsna", train=2, valid=2, test=2)
    run = start(data_root=str(tmp_path / "far"), output_dir=str(tmp_path / "away"))
    run.studies("rsna")
    run.record("loss", 1)
    for text in (run.finish(question="Why?", headline="loss").read_text(), run._repr_markdown_()):
        assert str(tmp_path) not in text
        assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|var|work)\b", text)
        assert socket.gethostname() not in re.split(r"[^\w.-]+", text)
        if len(getpass.getuser()) > 4:
            assert getpass.getuser() not in text


def test_summary_shows_the_choices(project):
    text = start(seed=11)._repr_markdown_()
    assert "| seed | 11 |" in text
    assert "| outputs | outputs/smoke/03_instance_alignment |" in text
    assert "| commit | not a git checkout |" in text


def test_git_commit(git_project):
    commit = git_commit(git_project)
    assert git(git_project, "rev-parse", "HEAD").startswith(commit)
    assert len(commit) == 12
    git(git_project, "tag", "-a", "v1", "-m", "one")
    assert git_commit(git_project) == commit  # a tag's name would hide the commit
    (git_project / "pyproject.toml").write_text("[project]\n")
    assert git_commit(git_project) == commit + "+"


def test_git_commit_outside_git(project):
    assert git_commit(project) == ""


def test_versions_of_absent_packages(monkeypatch):
    monkeypatch.setattr("mgca_lib.run.PACKAGES", ("torch", "no-such-package"))
    assert package_versions() | {"python": ""} == {
        "python": "",
        "torch": importlib.metadata.version("torch"),  # torch.__version__ may name its CUDA build, too
        "no-such-package": "not installed",
    }


def test_show_writes_the_figure(project, monkeypatch):
    from matplotlib.figure import Figure
    from PIL import Image

    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *parts: shown.extend(parts))
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1])
    run = start()
    run.show(figure, "loss", "It falls.")
    with Image.open(run.output_dir / "loss.png") as picture:
        assert picture.width > 100
    assert shown[0].alt == "It falls."
    assert shown[1].data == "*It falls.*"


def test_progress_is_quiet_where_nobody_watches(monkeypatch, capsys):
    monkeypatch.delenv("MGCA_PROGRESS", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress(total=2, description="loud") as bar:
        bar.update(1)
    assert "loud" in capsys.readouterr().err
    monkeypatch.setenv("MGCA_PROGRESS", "0")
    with progress(total=2, description="quiet") as bar:
        bar.update(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_card_that_only_emulates_bf16_trains_in_fp32(monkeypatch, native, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert training_precision("auto") == precision
