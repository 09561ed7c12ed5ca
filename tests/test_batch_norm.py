"""BatchNorm over processes: two that share a batch must equal ``nn.BatchNorm`` on the whole of it."""

import copy

import pytest
import torch
import torch.distributed as dist
from run_helpers import in_processes
from timm.layers import BatchNormAct2d
from torch import nn

from mgca_lib.alignment.distributed import sum_across
from mgca_lib.batch_norm import MaskedBatchNorm, SynchronisedBatchNorm, synchronise_batch_norm

SHARES = ((0, 3), (3, 8))  # of unequal size
SHAPES = {
    "vectors": ((8, 5), lambda: nn.BatchNorm1d(5)),
    "without affine": ((8, 5), lambda: nn.BatchNorm1d(5, affine=False)),
    "images": ((8, 5, 3, 2), lambda: nn.BatchNorm2d(5)),
    "with activation": ((8, 5, 3, 2), lambda: BatchNormAct2d(5, act_layer=nn.SiLU)),
}


def values_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 7


def disturbed(norm):
    """Weights and biases other than 1 and 0."""
    for seed, parameter in enumerate(norm.parameters()):
        parameter.data = values_of(parameter.shape, seed + 5).float()
    return norm.double()


def step(norm, values, weights, *more):
    """Two training steps' worth of output, gradients and statistics for the loss ``sum(weights * output)``."""
    values = values.clone().requires_grad_()
    norm(values + 1, *more)
    output = norm(values, *more)
    (output * weights).sum().backward()
    found = {"output": output.detach(), "gradient": values.grad}
    found |= {name: parameter.grad for name, parameter in norm.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in norm.named_buffers()}


def masked_case():
    keep = torch.arange(6).expand(8, 6) < torch.tensor([6, 1, 3, 2, 2, 5, 6, 4])[:, None]
    return values_of((8, 6, 5)), values_of((8, 6, 5), 1), keep


def work(rank, folder):
    dist.init_process_group("gloo")
    own = slice(*SHARES[rank])
    found = {}
    for name, (shape, make) in SHAPES.items():
        model = nn.Sequential(disturbed(make()))
        synchronise_batch_norm(model)
        assert isinstance(model[0], SynchronisedBatchNorm)
        found[name] = step(model[0], values_of(shape)[own], values_of(shape, 1)[own])
    model = nn.Sequential(disturbed(MaskedBatchNorm(5)))
    synchronise_batch_norm(model)
    values, weights, keep = masked_case()
    found["masked"] = step(model[0], values[own], weights[own], keep[own])
    found["apart"] = step(disturbed(nn.BatchNorm1d(5)), *(values_of((8, 5), seed)[own] for seed in (0, 1)))
    mine = torch.tensor([1.0, 2.0 * rank], requires_grad=True)
    (sum_across(mine) * torch.tensor([1.0, 10.0 + rank])).sum().backward()
    found["sum"] = {"value": sum_across(mine).detach(), "gradient": mine.grad}
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("norm")
    assert in_processes(2, work, folder) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def together(ranks, name):
    """What both processes found: rows one behind the other, gradients of parameters added, statistics of either."""
    one, two = (rank[name] for rank in ranks)
    rows = {key: torch.cat([one[key], two[key]]) for key in ("output", "gradient")}
    summed = {key: one[key] + two[key] for key in one if key in ("weight", "bias")}
    statistics = {key: one[key] for key in one if key not in rows and key not in summed}
    for key, value in statistics.items():
        assert torch.equal(two[key], value), key
    return rows | summed | statistics


@pytest.mark.parametrize("name", SHAPES)
def test_two_processes_equal_batch_norm_on_the_whole_batch(ranks, name):
    shape, make = SHAPES[name]
    expected = step(disturbed(make()), values_of(shape), values_of(shape, 1))
    torch.testing.assert_close(together(ranks, name), expected, rtol=1e-9, atol=1e-10)


def test_padding_stays_out_over_processes(ranks):
    values, weights, keep = masked_case()
    found = together(ranks, "masked")
    norm = disturbed(nn.BatchNorm1d(5))
    expected = step(norm, values[keep], weights[keep])
    for key in ("output", "gradient"):
        # What padding became depends on the statistics, and so adds to the gradient of real slots: leave it out.
        found[key] = found[key][keep]
    assert torch.allclose(found["output"], expected["output"], rtol=1e-9)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=0)
    alone = step(disturbed(MaskedBatchNorm(5)), values, weights, keep)
    for key in ("gradient", "weight", "bias"):
        wanted = alone[key][keep] if key == "gradient" else alone[key]
        torch.testing.assert_close(found[key], wanted, rtol=1e-9, atol=1e-10)


def test_apart_they_differ(ranks):
    expected = step(disturbed(nn.BatchNorm1d(5)), values_of((8, 5)), values_of((8, 5), 1))
    apart = torch.cat([rank["apart"]["output"] for rank in ranks])
    assert (apart - expected["output"]).abs().max() > 0.1


def test_a_sum_over_processes_returns_the_sum_of_all_gradients(ranks):
    for rank in ranks:
        assert rank["sum"]["value"].tolist() == [2.0, 2.0]
        assert rank["sum"]["gradient"].tolist() == [2.0, 21.0]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_on_one_process_nothing_changes(name, training):
    shape, make = SHAPES[name]
    plain = nn.Sequential(disturbed(make())).train(training)
    synchronised = copy.deepcopy(plain)
    synchronise_batch_norm(synchronised)
    assert synchronised[0].training is training
    assert list(synchronised.state_dict()) == list(plain.state_dict())
    arguments = (values_of(shape), values_of(shape, 1))
    for key, value in step(plain[0], *arguments).items():
        assert torch.equal(step(copy.deepcopy(synchronised)[0], *arguments)[key], value), key


def test_half_precision_comes_out_as_it_went_in():
    model = nn.Sequential(nn.BatchNorm2d(5))
    synchronise_batch_norm(model)
    assert model(torch.randn(2, 5, 3, 3).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"expected \(B, 5, \.\.\.\), got \(2, 4, 3, 3\)"):
        model(torch.randn(2, 4, 3, 3))
