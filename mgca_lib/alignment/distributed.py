"""What the alignment modules exchange between processes; plain functions on one process.

Scaling, in one place. ``DistributedDataParallel`` (DDP) *averages* parameter gradients over the
``N`` processes.

- Instance alignment: every process gathers all embeddings and computes the same loss over the
  global batch. Each process therefore holds a full copy of the gradient of every embedding;
  :func:`gather_with_gradient` sums the copies (a factor ``N``), and DDP's average takes the factor
  out again.
- Token alignment over pairs: every process scores its own reports with the gathered patches of all images, and the
  scores are gathered in the same way, so that all compute the same loss.
- Prototype alignment: every process averages over its own samples, and only the row sums of
  Sinkhorn are shared. DDP's average of ``N`` local means is the mean over the global batch.
- BatchNorm (:mod:`mgca_lib.batch_norm`): every process adds its share to the sums of the global batch, and
  :func:`sum_across` adds up what all losses think of them. DDP's average takes the factor out again.

All give the loss and the parameter gradients of one process that sees the global batch, provided
that every process holds equally many samples (drop the last, incomplete batch).
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

ProcessGroup = dist.ProcessGroup if dist.is_available() else object


def active_group() -> ProcessGroup | None:
    """Return the default process group, or ``None`` where there is nobody to talk to.

    Ask when a step runs, not when a module is built: modules are built before the group exists.

    >>> active_group() is None
    True
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the tensors of all processes in rank order, without gradient.

    Args:
        tensor: ``(B, ...)``, the same shape and dtype on every process.

    Returns:
        ``(N * B, ...)`` on ``N`` processes; ``tensor`` detached on one.

    >>> gather(torch.tensor([3, 1])).tolist()
    [3, 1]
    """
    tensor = tensor.detach()
    group = active_group()
    if group is None:
        return tensor
    tensor = tensor.contiguous()
    pieces = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(pieces, tensor, group=group)
    return torch.cat(pieces)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        return gather(tensor)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        # A copy, because all_reduce writes in place and autograd may share this gradient with other
        # nodes.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=active_group())
        start = dist.get_rank(active_group()) * ctx.rows
        return total[start : start + ctx.rows]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate the tensors of all processes in rank order; gradients flow back to every process.

    The gradient that returns is the *sum* over processes of each one's gradient for these rows: the
    exact gradient of the sum of all processes' losses. The module's docstring says why DDP then
    needs no further factor. Every process must run the backward pass, since it communicates.
    Upstream MGCA has such a helper and never calls it, so its negatives come from one GPU's batch
    alone.

    Args:
        tensor: ``(B, ...)`` floating point, the same shape and dtype on every process.

    Returns:
        ``(N * B, ...)`` on ``N`` processes; ``tensor`` itself on one.

    >>> embeddings = torch.ones(2, 3, requires_grad=True)
    >>> gather_with_gradient(embeddings) is embeddings
    True
    """
    return tensor if active_group() is None else _GatherWithGradient.apply(tensor)


class _SumAcross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=active_group())
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return _SumAcross.forward(ctx, gradient)


def sum_across(tensor: Tensor) -> Tensor:
    """Add up the tensors of all processes; gradients flow back to every process, summed as well.

    What a statistic over the global batch needs: its gradient on one process depends on the losses of all.

    Args:
        tensor: Floating point, the same shape and dtype on every process.

    Returns:
        The sum, the same on every process; ``tensor`` itself on one.

    >>> sum_across(torch.tensor([3.0, 1.0])).tolist()
    [3.0, 1.0]
    """
    return tensor if active_group() is None else _SumAcross.apply(tensor)


@torch.no_grad()
def logsumexp_across(values: Tensor, *, dim: int, group: ProcessGroup | None) -> Tensor:
    """Log of the sum of exponentials along ``dim`` here and on all other processes of ``group``.

    Args:
        values: Any shape; sizes may differ between processes along ``dim`` only.
        dim: The dimension to reduce; kept with size 1.
        group: ``None`` reduces on this process alone.

    >>> logsumexp_across(torch.zeros(4, 1), dim=0, group=None).exp().round().item()
    4.0
    """
    if group is None:
        return values.logsumexp(dim, keepdim=True)
    peak = values.amax(dim, keepdim=True)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    total = (values - peak).exp().sum(dim, keepdim=True)
    dist.all_reduce(total, group=group)
    return peak + total.log()


def check_groups(local_groups: int, *, gathered: bool) -> None:
    """Refuse a number of shares below 1, or several where the batches of all processes are taken together.

    Raises:
        ValueError: The number does not fit.
    """
    if local_groups < 1:
        raise ValueError(f"local_groups must be 1 or more, got {local_groups}")
    if local_groups > 1 and gathered:
        raise ValueError(f"local_groups = {local_groups} contradicts taking the batches of all processes together")
