"""Any number of processes trains the same model: order, losses, weights, and who may go on with whose run."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import tiny_config, tiny_studies
from run_helpers import command_words, die_at, in_child, in_processes, timeless
from safetensors.torch import load_file, save_file

from mgca_lib import encoders
from mgca_lib import pretrain as module
from mgca_lib.checkpoint import load_checkpoint
from mgca_lib.data.pairs import EpochBatches, PairImages
from mgca_lib.encoders import ReportEncoder
from mgca_lib.model import build_model
from mgca_lib.pretrain import PretrainError, pretrain
from mgca_lib.training_state import open_run as find_run
from mgca_lib.training_state import run_identity

GLOBAL = 8  # pairs of one forward pass over all processes
CASES = {
    "ViT": {"backbone": "test_vit"},
    "ResNet": {"backbone": "test_resnet"},
    "accumulation": {"backbone": "test_vit", "accumulation": 2},
    "queue": {"backbone": "test_vit", "queue_size": 13, "freeze_prototypes_epochs": 0},
    "chunks": {"backbone": "test_vit", "chunk_size": 1},
    "grounded": {"backbone": "test_vit", "token_form": "cta_grounded"},
    "GLoRIA": {"backbone": "test_resnet", "token_form": "gloria"},
    "masked words": {"backbone": "test_vit", "mlm_epochs": 1, "text_rate_factor": 0.5},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Four steps an epoch."""
    return tiny_studies(tmp_path_factory.mktemp("scale"), train=33, valid=8, test=4)


def config_of(case, processes, **settings):
    return tiny_config(batch_size=GLOBAL // processes, text_dropout=0.0, **(CASES[case] | settings))


class DoublePairs(PairImages):
    """Pairs whose images have double precision, as the weights then have."""

    def collate(self, items):
        batch = super().collate(items)
        return replace(batch, images=batch.images.double())


def run(rank, config, studies, out, resume=False, double=True):
    """Pretrain, and leave behind this process's weights, history and the rows that it saw.

    In double precision by default: BatchNorm over eight studies and low temperatures magnify the rounding of single
    precision a thousand times, and of gradients that are nothing but rounding Adam makes whole steps.
    """
    rows, models = [], []

    class Recorded(EpochBatches):
        def __iter__(self):
            for batch in super().__iter__():
                if self.shuffle:
                    rows.append([row for row, _ in batch])
                yield batch

    keeper, build_model, rebuild = module.Keeper, module.build_model, module.rebuild
    module.EpochBatches = Recorded
    module.Keeper = lambda out, model, *more: models.append(model) or keeper(out, model, *more)
    if double:
        module.PairImages = DoublePairs
        module.build_model = lambda *arguments, **more: build_model(*arguments, **more).double()
        module.rebuild = lambda *arguments: (lambda model, tokenizer: (model.double(), tokenizer))(*rebuild(*arguments))
    result = pretrain(config, studies, out / "run", seed=1, resume=resume)
    weights = {name: weight.contiguous() for name, weight in models[0].state_dict().items()}
    save_file(weights, out / f"{rank}.safetensors")
    (out / f"{rank}.json").write_text(json.dumps({"history": timeless(result.history), "rows": rows}))


def results(out, processes):
    weights = [load_file(out / f"{rank}.safetensors") for rank in range(processes)]
    notes = [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]
    assert all(note["history"] == notes[0]["history"] for note in notes)
    for other in weights[1:]:
        assert all(torch.equal(other[name], weight) for name, weight in weights[0].items())
    saved = load_file(out / "run/last/model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in weights[0].items())
    batches = [sum(shares, []) for shares in zip(*(note["rows"] for note in notes), strict=True)]
    return weights[0], notes[0]["history"], batches


# A bias in front of a BatchNorm changes nothing but that norm's running mean, and one added to all keys nothing at all.
# Their gradients are nothing but rounding, of which Adam makes steps all the same.
IDLE = ("enter.bias", "leave.bias", "layers.0.bias", "layers.3.bias", "key.bias")
AFTER_IDLE = ("enter_norm.running_mean", "leave_norm.running_mean", "layers.1.running_mean", "layers.4.running_mean")


def assert_same_training(one, two):
    for first, second in zip(one[1], two[1], strict=True):
        assert first == pytest.approx(second, rel=1e-6, abs=1e-8)
    for name, weight in one[0].items():
        difference = (two[0][name] - weight).abs().max()
        assert difference < (1e-4 if name.endswith(IDLE + AFTER_IDLE) else 1e-7), name


@pytest.fixture(scope="module")
def alone(studies, tmp_path_factory):
    """Runs of one process by case, each computed once."""
    found = {}

    def of(case, double=True):
        if (case, double) not in found:
            out = tmp_path_factory.mktemp("alone")
            assert in_child(run, 0, config_of(case, 1), studies, out, False, double) == 0
            found[case, double] = results(out, 1)
        return found[case, double]

    return of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_equal_one_process(studies, alone, tmp_path, processes, case):
    assert in_processes(processes, run, config_of(case, processes), studies, tmp_path) == [0] * processes
    ours = results(tmp_path, processes)
    assert ours[2] == alone(case)[2]
    assert_same_training(ours, alone(case))
    start = build_model(config_of(case, 1), load_checkpoint(tmp_path / "run/last")[1], seed=1).state_dict()
    moved = [name for name in start if not torch.allclose(start[name].double(), ours[0][name].double(), atol=1e-5)]
    assert len(moved) > 0.7 * len(start)


def distance(one, two):
    """Length of the difference of all weights, relative to that of the second."""
    squares = [(one[0][name].double() - weight.double()).square().sum() for name, weight in two[0].items()]
    return (sum(squares) / sum(weight.double().square().sum() for weight in two[0].values())).sqrt().item()


@pytest.mark.parametrize("processes", [2, 4])
def test_single_precision_stays_as_close_on_any_number_of_processes(studies, alone, tmp_path, processes):
    """What one process differs by from its own run in double precision, several may differ by thrice."""
    arguments = (config_of("ResNet", processes), studies, tmp_path, False, False)
    assert in_processes(processes, run, *arguments) == [0] * processes
    exact = alone("ResNet")
    ours, single = distance(results(tmp_path, processes), exact), distance(alone("ResNet", double=False), exact)
    assert ours < 3 * single < 0.01


def killed(rank, config, studies, out, step):
    """As ``run``, but every process dies in this step, counted from 1."""
    die_at(torch.optim.AdamW, "step", step)
    run(rank, config, studies, out)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 4)])
def test_another_number_of_processes_goes_on(studies, alone, tmp_path, before, after):
    """The same command on other processes: same order, and the weights of a run that was never stopped."""
    config = config_of("queue", before)
    codes = in_processes(before, killed, config, studies, tmp_path, 6)
    assert -signal.SIGKILL in codes
    assert in_processes(after, run, config, studies, tmp_path, True) == [0] * after
    weights, history, batches = results(tmp_path, after)
    reference = alone("queue")
    assert batches == reference[2][5:]  # five steps of eight were done
    assert_same_training((weights, history), reference)
    provenance = json.loads((tmp_path / "run/last/config.json").read_text())["provenance"]
    assert provenance["processes"] == after
    assert provenance["settings"]["training"]["batch_size"] * after == GLOBAL


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 4)])
def test_another_number_of_processes_goes_on_reading(studies, alone, tmp_path, before, after):
    """Killed in the first step with films, after one pass of four steps over the reports."""
    config = config_of("masked words", before)
    codes = in_processes(before, killed, config, studies, tmp_path, 5)
    assert -signal.SIGKILL in codes
    assert (tmp_path / "run/reading").is_dir()
    assert in_processes(after, run, config, studies, tmp_path, True) == [0] * after
    assert_same_training(results(tmp_path, after), alone("masked words"))


def count_reports(rank, config, studies, out):
    sizes, read = set(), ReportEncoder.read

    def counting(self, pieces, keep):
        if torch.is_grad_enabled():
            sizes.add(len(pieces))
        return read(self, pieces, keep)

    ReportEncoder.read = counting
    encoders.LENGTH_GROUPS = 1  # aligned reports would be read in parts of a batch
    pretrain(config, studies, out / "run", seed=1)
    assert sizes == {config.training.batch_size}


def test_processes_share_the_masked_words(studies, tmp_path):
    assert in_processes(2, count_reports, config_of("masked words", 2), studies, tmp_path) == [0, 0]


def reading_alone(rank, config, studies, out):
    """The second node does not see what the first one has read."""
    problem = r"found different checkpoints \(1 of the passes over the reports, 0 of the passes .*\)"
    with pytest.raises(PretrainError, match=problem):
        pretrain(config, studies, out / ("run" if rank == 0 else "elsewhere"), seed=1, resume=True)


def test_what_only_one_node_has_read(studies, tmp_path):
    in_processes(2, killed, config_of("masked words", 2), studies, tmp_path, 5)
    assert in_processes(2, reading_alone, config_of("masked words", 2), studies, tmp_path) == [0, 0]


@pytest.fixture(scope="module")
def open_run(studies, tmp_path_factory):
    """A run of two processes that was killed in its second step."""
    out = tmp_path_factory.mktemp("open")
    in_processes(2, killed, config_of("ViT", 2), studies, out, 2)
    return out / "run"


def test_settings_of_how_may_change(studies, open_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(open_run, out)
    config = config_of("ViT", 1, chunk_size=3, workers=0, keep_images=False, checkpoint_steps=3)
    assert pretrain(config, studies, out, seed=1, resume=True).trained


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"batch_size": 6}, "batch_size = 6 on 1 processes makes batches of 6 pairs; the run in .* has 8, and keeps"),
        ({"accumulation": 2}, r"holds a run with other settings; .* \(accumulation: 1, now 2\)"),
        ({"queue_size": 5}, r"holds a run with other settings; .* \(queue_size: 0, now 5\)"),
    ],
)
def test_what_would_change_the_run_is_refused(studies, open_run, settings, problem):
    config = config_of("ViT", 2).override(**settings)
    with pytest.raises(PretrainError, match=problem):
        pretrain(config, studies, open_run, seed=1, resume=True)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"gather": False}, "gather is off"),
        ({"sync_batchnorm": False}, "sync_batchnorm is off"),
    ],
)
def test_losses_within_a_process_tie_a_run_to_their_number(tmp_path, studies, settings, reason):
    identity = run_identity(config_of("ViT", 2, **settings), studies, 1, 2)
    (tmp_path / "last").mkdir()
    (tmp_path / "last/model.safetensors").write_bytes(b"")
    (tmp_path / "last/config.json").write_text(json.dumps({"provenance": identity}))
    problem = rf"was started with 2 processes and cannot go on with 4, since .* \({reason}\)"
    with pytest.raises(PretrainError, match=problem):
        find_run(tmp_path, run_identity(config_of("ViT", 2, **settings), studies, 1, 4), resume=True)
    assert find_run(tmp_path, identity, resume=True) == (4, None)


@pytest.mark.parametrize("processes", [3, 8])
def test_batches_that_cannot_be_shared(open_run, studies, processes):
    identity = run_identity(config_of("ViT", 2), studies, 1, processes)
    with pytest.raises(PretrainError, match=f"batches of 8 pairs cannot be shared among {processes} processes"):
        find_run(open_run, identity, resume=True)


def test_a_finished_run_is_anybody_s(tmp_path, studies):
    """A notebook reads what eight GPUs trained, without being eight."""
    identity = run_identity(config_of("ViT", 2, gather=False), studies, 1, 8)
    (tmp_path / "finished.json").write_text(json.dumps({"identity": identity, "history": [{"epoch": 1}]}))
    found = find_run(tmp_path, identity | {"processes": 1}, resume=True)[1]
    assert (found.history, found.trained) == ([{"epoch": 1}], False)


def without_one(rank, config, studies, out):
    """The second node does not see the first one's folder."""
    with pytest.raises(PretrainError, match=r"found different checkpoints \(step 1, step 0\); all nodes must share it"):
        pretrain(config, studies, out / ("run" if rank == 0 else "elsewhere"), seed=1, resume=True)


def test_a_folder_that_only_one_node_sees(studies, open_run):
    assert in_processes(2, without_one, config_of("ViT", 2), studies, open_run.parent) == [0, 0]


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    # With --cpu, accelerate starts several processes through MPI alone; told of GPUs, it starts them itself.
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(studies, tmp_path, launcher):
    """Two processes on gloo, from outside; the second call finds the finished run."""
    config = config_of("ViT", 2, epochs=1)
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "mgca_lib.pretrain"]
    command += command_words(config, studies.root, tmp_path / "run", 1, "--resume")
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "trained 1 epochs" in first.stdout
    provenance = json.loads((tmp_path / "run/finished.json").read_text())["identity"]
    assert provenance["processes"] == 2
    assert "already trained 1 epochs" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_a_fault_of_one_process_ends_all(tmp_path):
    """One process meets an image that cannot be read: its message is shown, the other does not wait for ever."""
    studies = tiny_studies(tmp_path / "data", train=33, valid=8, test=4)
    path = studies.root / studies.split("train").table["image"].iloc[5]
    content = path.read_bytes()
    path.write_bytes(content[:40])
    command = [sys.executable, "-m", *LAUNCHERS["torchrun"], "-m", "mgca_lib.pretrain"]
    command += command_words(config_of("ViT", 2, epochs=1), studies.root, tmp_path / "run", 1, "--resume")
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode != 0
    assert f"{path.name}: image 'train005' (row 5) cannot be read" in ended.stderr
    assert not (tmp_path / "run/finished.json").exists()
    path.write_bytes(content)
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert "trained 1 epochs" in again.stdout


@pytest.mark.parametrize("left", ["instance", "instance and token"])
def test_a_term_may_be_missing_on_several_processes(studies, tmp_path, left):
    weights = {"prototype_weight": 0.0} | ({"token_weight": 0.0} if left == "instance" else {})
    assert in_processes(2, run, config_of("ViT", 2, **weights), studies, tmp_path) == [0, 0]


def note_seeds(rank, config, studies, out):
    step, seeds = module._optimiser_step, []

    def noting(*arguments, **settings):
        seeds.append(torch.initial_seed())
        return step(*arguments, **settings)

    module._optimiser_step = noting
    pretrain(config, studies, out / "run", seed=1)
    (out / f"seeds{rank}.json").write_text(json.dumps(seeds))


def test_each_process_draws_its_own_dropout(studies, tmp_path):
    assert in_processes(2, note_seeds, config_of("ViT", 2, epochs=1), studies, tmp_path) == [0, 0]
    first, second = (json.loads((tmp_path / f"seeds{rank}.json").read_text()) for rank in range(2))
    assert len(set(first)) == len(first) > 1
    assert not set(first) & set(second)
