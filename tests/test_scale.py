"""Any number of processes trains the same model: order, losses, weights, and who may go on with whose run."""

import json
from functools import partial

import pytest
import torch
from helpers import tiny_config, tiny_studies
from run_helpers import in_child, in_processes, timeless
from safetensors.torch import load_file, save_file

from mgca_lib import pretrain as module
from mgca_lib.data.pairs import EpochBatches
from mgca_lib.pretrain import pretrain

GLOBAL = 8  # pairs of one forward pass over all processes
CASES = {
    "ViT": {"backbone": "test_vit"},
    "ResNet": {"backbone": "test_resnet"},
    "accumulation": {"backbone": "test_vit", "accumulation": 2},
    "queue": {"backbone": "test_vit", "queue_size": 13, "freeze_prototypes_epochs": 0},
    "chunks": {"backbone": "test_vit", "chunk_size": 1},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Four steps an epoch."""
    return tiny_studies(tmp_path_factory.mktemp("scale"), train=33, valid=8, test=4)


def config_of(case, processes, **settings):
    return tiny_config(batch_size=GLOBAL // processes, text_dropout=0.0, **(CASES[case] | settings))


def run(rank, config, studies, out, resume=False):
    """Pretrain, and leave behind this process's weights, history and the rows that it saw."""
    rows, models = [], []
    # With its usual 1e-8, Adam makes whole steps of a gradient that is nothing but rounding (of a bias in front of
    # BatchNorm, say), and no two ways to add the same numbers would end close together.
    torch.optim.AdamW = partial(torch.optim.AdamW, eps=0.1)

    class Recorded(EpochBatches):
        def __iter__(self):
            for batch in super().__iter__():
                if self.shuffle:
                    rows.append([row for row, _ in batch])
                yield batch

    build_model = module.build_model
    module.EpochBatches = Recorded
    module.build_model = lambda *arguments, **more: models.append(build_model(*arguments, **more)) or models[0]
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
    batches = [sum(shares, []) for shares in zip(*(note["rows"] for note in notes), strict=True)]
    return weights[0], notes[0]["history"], batches


def assert_same_training(one, two):
    for first, second in zip(one[1], two[1], strict=True):
        assert first == pytest.approx(second, rel=1e-5, abs=1e-7)
    for name, weight in one[0].items():
        torch.testing.assert_close(two[0][name], weight, rtol=1e-5, atol=2e-6, msg=name)


@pytest.fixture(scope="module")
def alone(studies, tmp_path_factory):
    """Runs of one process by case, each computed once."""
    found = {}

    def of(case):
        if case not in found:
            out = tmp_path_factory.mktemp("alone")
            assert in_child(run, 0, config_of(case, 1), studies, out) == 0
            found[case] = results(out, 1)
        return found[case]

    return of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_equal_one_process(studies, alone, tmp_path, processes, case):
    assert in_processes(processes, run, config_of(case, processes), studies, tmp_path) == [0] * processes
    ours = results(tmp_path, processes)
    assert ours[2] == alone(case)[2]
    assert_same_training(ours, alone(case))
