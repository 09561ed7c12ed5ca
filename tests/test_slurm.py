"""The batch file for pretraining with stand-ins for Slurm's commands, and the profile as Snakemake reads it."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from helpers import tiny_config, tiny_studies
from run_helpers import command_words

STAND_INS = {
    # srun starts its command once a node; here it notes the command and runs it where it is.
    "srun": 'echo "$@" > srun.txt\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": 'echo "$@" >> scontrol.txt\nif [ "$1" = show ]; then echo 127.0.0.1; fi\n',
}


@pytest.fixture
def cluster(tmp_path, repository):
    """A folder that looks like the project's, with Slurm's commands first in the search path."""
    for name, body in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/usr/bin/env bash\n" + body)
        path.chmod(0o755)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(repository),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "1",
        "PROCESSES_PER_NODE": "2",
        "RENDEZVOUS_PORT": "0",
    }
    return tmp_path, environment


def batch(repository, cluster, *arguments):
    folder, environment = cluster
    command = ["bash", str(repository / "slurm/pretrain.sbatch"), *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def prepared(folder):
    """What the batch file takes for a prepared dataset."""
    folder.mkdir()
    (folder / "card.json").write_text("{}")


@pytest.mark.slow
def test_the_batch_file_trains_and_goes_on(repository, cluster, tmp_path):
    studies = tiny_studies(tmp_path / "data", train=16, valid=8, test=4)
    words = command_words(tiny_config(batch_size=4, epochs=1), studies.root, tmp_path / "run", 3)
    for expected in ("trained 1 epochs", "already trained 1 epochs"):
        process = batch(repository, cluster, words[1], words[3], *words[4:])
        shown = process.communicate(timeout=180)[0]
        assert process.returncode == 0, shown
        assert expected in shown
    assert "--nnodes 1 --nproc-per-node 2" in (tmp_path / "srun.txt").read_text()


def test_the_time_limit_puts_the_job_back_into_the_queue(repository, cluster):
    folder, environment = cluster
    del environment["RENDEZVOUS_PORT"]
    prepared(folder / "data")
    (folder / "bin/srun").write_text('#!/usr/bin/env bash\necho "$@" > srun.txt\necho $$ > running\nexec sleep 60\n')
    with batch(repository, cluster, "data", "out") as process:
        while not (folder / "running").exists():
            assert process.poll() is None
            time.sleep(0.02)
        while process.poll() is None:  # until it waits for srun, a signal only makes it requeue
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.1)
        os.kill(int((folder / "running").read_text()), signal.SIGKILL)
    assert "requeue 7" in (folder / "scontrol.txt").read_text().splitlines()
    started = (folder / "srun.txt").read_text()
    assert "--cpus-per-task=16 " in started
    assert "--rdzv-endpoint 127.0.0.1:20007 " in started  # job 7's own, so that jobs may share a node


def test_the_batch_file_wants_two_folders(repository, cluster):
    with batch(repository, cluster, "data") as process:
        assert "two folders come first: the prepared dataset, and the run" in process.communicate(timeout=20)[0]
    assert process.returncode != 0
    assert not (cluster[0] / "srun.txt").exists()


@pytest.mark.parametrize(("data", "missing"), [("nowhere", "nowhere/card.json"), ("data", ".venv/bin/python")])
def test_a_wrong_folder_is_one_line_of_the_log(repository, cluster, data, missing):
    folder, _ = cluster
    prepared(folder / "data")
    (folder / missing).unlink(missing_ok=True)
    with batch(repository, cluster, data, "out") as process:
        shown = process.communicate(timeout=20)[0]
    assert process.returncode == 2
    assert shown.count("\n") == 1
    assert shown.startswith(f"error: {missing}: missing in {folder}; ")
    assert not (folder / "srun.txt").exists()


def test_the_batch_file_asks_for_what_it_needs(repository):
    lines = (repository / "slurm/pretrain.sbatch").read_text().splitlines()
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@120", "--ntasks-per-node=1"} <= options
    assert subprocess.run(["bash", "-n", str(repository / "slurm/pretrain.sbatch")], check=False).returncode == 0


def snakemake(folder, *arguments):
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm/profile", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def is_missing(name):
    return importlib.util.find_spec(name) is None


EXECUTORS = [
    pytest.param(["--executor", "dryrun"], id="dryrun"),
    pytest.param(
        ["--dry-run"],
        id="slurm",
        marks=pytest.mark.skipif(is_missing("snakemake_executor_plugin_slurm"), reason="the plugin is not installed"),
    ),
]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("target", ["course", "grid"])
def test_the_profile_as_snakemake_reads_it(repository, executor, target):
    """With the profile's executor where its plugin is, else with one that every installation has; nothing runs."""
    assert yaml.safe_load((repository / "slurm/profile/config.yaml").read_text())["executor"] == "slurm"
    notebooks = list((repository / "notebooks").glob("[0-9][0-9]_*.py"))
    # A cell needs the data (01) and the films of patients (13, which needs 06).
    jobs = {"notebook": len(notebooks)} if target == "course" else {"notebook": 3, "cell": 6}
    config = ["profile=smoke", "seeds=[43,44]", 'variants=["ita","all"]']
    shown = snakemake(repository, *executor, "--forceall", "--config", *config, "--", target)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    text = shown.stdout + shown.stderr
    for rule, count in jobs.items():
        assert re.search(rf"^{rule} +{count}$", text, re.MULTILINE), text
    resources = [line for line in text.splitlines() if "resources: " in line]
    wanted = ("mem_mb=32000", "runtime=240", "cpus_per_task=8", "gres=gpu:1")
    assert sum(all(part in line for part in wanted) for line in resources) >= sum(jobs.values())


def test_a_job_takes_the_processors_it_asked_for(repository, monkeypatch):
    """Inside a job Snakemake counts the cores of the node, unless the cluster hides those of others."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    shown = snakemake(repository, "--executor", "dryrun", "--forceall", "--config", "profile=smoke", "--", "grid")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert set(re.findall(r"threads: (\d+)", shown.stdout + shown.stderr)) == {"3"}


@pytest.mark.slow
def test_a_cell_of_the_grid_runs_through_the_profile(repository, tmp_path):
    """On this computer, from the raw phantoms on; the one thing changed is who runs the jobs."""
    for name in ("Snakefile", "pyproject.toml"):
        shutil.copy(repository / name, tmp_path)
    for name in ("notebooks", "mgca_lib", "data_scripts", "slurm"):
        shutil.copytree(repository / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
    wanted = "outputs/smoke/grid/ita/seed-43/metrics.json"
    shown = snakemake(tmp_path, "--executor", "local", "--cores", "1", "--config", "profile=smoke", "--", wanted)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert json.loads((tmp_path / wanted).read_text())["provenance"]["seed"] == 43
