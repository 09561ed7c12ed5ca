"""Two processes on gloo must equal one process that sees the global batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mgca_lib.alignment import InstanceAlignment, PrototypeAlignment, gather_with_gradient, sinkhorn
from mgca_lib.alignment.distributed import active_group, gather, logsumexp_across

WORLD = 2
TEXT_ID = torch.tensor([5, 1, 2, 3, 5, 1, 4, 6])  # equal texts on either side of the cut
SCORES = torch.linspace(-1, 1, 8 * 3, dtype=torch.float64).sin().view(8, 3)
UNEVEN = ((0, 5), (5, 8))


class TwoHeads(nn.Module):
    """One linear head per modality and an alignment term on top, as small as a model can be."""

    def __init__(self, term):
        super().__init__()
        torch.manual_seed(0)
        self.image_head = nn.Linear(6, 4)
        self.report_head = nn.Linear(6, 4)
        self.term = term

    def forward(self, image, report, **settings):
        return self.term(self.image_head(image), self.report_head(report), **settings)


def prototypes(**settings):
    torch.manual_seed(1)
    return PrototypeAlignment(5, 4, **settings)


CASES = {
    "instance gathered": lambda: InstanceAlignment(gather=True),
    "instance local": lambda: InstanceAlignment(gather=False),
    "instance texts": lambda: InstanceAlignment(gather=True),
    "prototype shared": lambda: prototypes(distributed=True),
    "prototype local": lambda: prototypes(distributed=False),
    "prototype queue": lambda: prototypes(distributed=True, queue_size=10),
}


def batches(step):
    generator = torch.Generator().manual_seed(10 + step)
    return torch.randn(2, 8, 6, generator=generator, dtype=torch.float64)


def train(name, rank=0, world=1):
    """Three steps of plain gradient descent on this process's slice of each global batch."""
    model = TwoHeads(CASES[name]()).double()
    inner = model
    if world > 1:
        model = DistributedDataParallel(model)
    rows = slice(rank * 8 // world, (rank + 1) * 8 // world)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, gradients = [], []
    for step in range(3):
        image, report = batches(step)[:, rows]
        settings = {"text_id": TEXT_ID[rows]} if name == "instance texts" else {}
        optimizer.zero_grad()
        loss = model(image, report, **settings)
        loss.backward()
        losses.append(loss.item())
        gradients.append({key: p.grad.clone() for key, p in inner.named_parameters()})
        optimizer.step()
    return {"losses": losses, "gradients": gradients, "buffers": dict(inner.named_buffers())}


def work(rank, folder):
    """Everything the tests below want to know from two processes, in one start-up."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    try:
        result = {name: train(name, rank, WORLD) for name in CASES}
        ours = torch.full((2, 3), float(rank), requires_grad=True)
        everybody = gather_with_gradient(ours)
        weights = torch.arange(12.0).view(4, 3) * (rank + 1)
        (everybody * weights).sum().backward()
        start, stop = UNEVEN[rank]
        result["gather"] = {"rows": everybody.detach(), "gradient": ours.grad}
        result["plain gather"] = gather(torch.tensor([rank, 7]))
        result["uneven codes"] = sinkhorn(SCORES[start:stop], group=active_group())
        torch.save(result, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    if not dist.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    folder = tmp_path_factory.mktemp("gloo")
    multiprocessing.spawn(work, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


def assert_equals_one_process(ranks, name):
    alone = train(name)
    mean = [sum(losses) / WORLD for losses in zip(*(r[name]["losses"] for r in ranks), strict=True)]
    assert mean == pytest.approx(alone["losses"], rel=1e-12)
    for rank in ranks:
        torch.testing.assert_close(rank[name]["gradients"], alone["gradients"], rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(rank[name]["buffers"], alone["buffers"])


@pytest.mark.parametrize("name", ["instance gathered", "instance texts"])
def test_gathered_instance_alignment_equals_one_process(ranks, name):
    assert_equals_one_process(ranks, name)
    assert ranks[0][name]["losses"] == ranks[1][name]["losses"]


def test_texts_are_compared_across_processes(ranks):
    plain, texts = (ranks[0][name]["losses"][0] for name in ("instance gathered", "instance texts"))
    assert abs(plain - texts) > 1e-3


@pytest.mark.parametrize("name", ["prototype shared", "prototype queue"])
def test_shared_sinkhorn_equals_one_process(ranks, name):
    assert_equals_one_process(ranks, name)


@pytest.mark.parametrize("name", ["instance local", "prototype local"])
def test_local_terms_do_not_equal_one_process(ranks, name):
    with pytest.raises(AssertionError):
        assert_equals_one_process(ranks, name)


def test_gradient_is_the_sum_over_processes(ranks):
    expected_rows = torch.tensor([[0.0] * 3] * 2 + [[1.0] * 3] * 2)
    weights = torch.arange(12.0).view(4, 3)
    for rank, result in enumerate(ranks):
        assert torch.equal(result["gather"]["rows"], expected_rows)
        # The two processes weigh the rows once and twice.
        assert torch.equal(result["gather"]["gradient"], 3 * weights[2 * rank : 2 * rank + 2])
        assert result["plain gather"].tolist() == [0, 7, 1, 7]


def test_sinkhorn_shares_may_be_uneven(ranks):
    codes = torch.cat([result["uneven codes"] for result in ranks])
    torch.testing.assert_close(codes, sinkhorn(SCORES), rtol=1e-12, atol=0)
    apart = torch.cat([sinkhorn(SCORES[start:stop]) for start, stop in UNEVEN])
    assert (codes - apart).abs().max() > 1e-3


def test_one_process_needs_no_group():
    assert active_group() is None
    values = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert gather_with_gradient(values) is values
    assert torch.equal(gather(values), values.detach())
    assert not gather(values).requires_grad
    expected = values.detach().exp().sum(dim=0, keepdim=True).log()
    torch.testing.assert_close(logsumexp_across(values, dim=0, group=None), expected)
