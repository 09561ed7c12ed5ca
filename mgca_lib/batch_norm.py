"""BatchNorm that leaves padding out, and BatchNorm over the batches of all processes.

``nn.SyncBatchNorm`` runs on CUDA alone; the classes here exchange plain sums, so they run on gloo and NCCL alike.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mgca_lib.alignment.distributed import active_group, sum_across


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the last axis of ``(B, N, D)`` in which padding has no say.

    Upstream lets padded slots into the statistics. With every slot real this equals ``nn.BatchNorm1d`` on the
    flattened slots, running statistics included.

    Attributes:
        synchronised: Take the statistics over the batches of all processes, which need not hold equally many slots.
    """

    synchronised = False

    def forward(self, values: Tensor, keep: Tensor) -> Tensor:
        """Normalise ``values`` ``(B, N, D)``; statistics over the slots where ``keep`` ``(B, N)`` is true."""
        values = values.to(self.running_mean.dtype)
        if not self.training:
            return self.standardise(values, self.running_mean, self.running_var)
        with torch.autocast(values.device.type, enabled=False):  # statistics in full precision
            result, mean, variance, count = _MaskedStandardise.apply(values, keep, self.eps, self.synchronised)
        self.remember(mean, variance, count)
        return self._scaled(result)

    def standardise(self, values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalise ``(..., D)`` with a given mean and variance ``(D,)``, both of which get gradients."""
        return self._scaled((values - mean) * torch.rsqrt(variance + self.eps))

    def remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics towards those of a batch of ``count`` slots."""
        _remember(self, mean, variance, count)

    def _scaled(self, result: Tensor) -> Tensor:
        return torch.addcmul(self.bias, result, self.weight) if self.affine else result


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm of ``(B, D)`` or ``(B, D, H, W)`` with statistics over the batches of all processes.

    On one process, and in evaluation mode, it is what it replaces.

    Args:
        replaced: The module whose parameters, statistics, dropout and activation (timm has BatchNorm with both) it
            takes over.
    """

    def __init__(self, replaced: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__(replaced.num_features, replaced.eps, replaced.momentum, affine=replaced.affine)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(replaced, name))
        self.train(replaced.training)
        self.drop = getattr(replaced, "drop", nn.Identity())
        self.act = getattr(replaced, "act", nn.Identity())

    def _check_input_dim(self, values: Tensor) -> None:
        if values.ndim < 2 or values.shape[1] != self.num_features:
            raise ValueError(f"expected (B, {self.num_features}, ...), got {tuple(values.shape)}")

    def forward(self, values: Tensor) -> Tensor:
        """Normalise over every axis but the second."""
        if not self.training or active_group() is None:
            return self.act(self.drop(super().forward(values)))
        self._check_input_dim(values)
        rows = values.movedim(1, -1)
        with torch.autocast(values.device.type, enabled=False):
            slots = rows.reshape(1, -1, self.num_features).to(self.running_mean.dtype)
            keep = torch.ones(slots.shape[:2], dtype=torch.bool, device=slots.device)
            result, mean, variance, count = _MaskedStandardise.apply(slots, keep, self.eps, True)
            if self.affine:
                result = torch.addcmul(self.bias, result, self.weight)
        if self.track_running_stats:
            _remember(self, mean, variance, count)
        result = result.view(rows.shape).movedim(-1, 1).to(values.dtype)
        return self.act(self.drop(result))


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let every BatchNorm below ``model`` take its statistics over all processes, in place.

    Names, parameters and running statistics stay, so that checkpoints fit with and without.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    >>> synchronise_batch_norm(model)
    >>> type(model[1]).__name__, list(model.state_dict())[2]
    ('SynchronisedBatchNorm', '1.weight')
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MaskedBatchNorm):
                child.synchronised = True
            elif isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, SynchronisedBatchNorm(child))


@torch.no_grad()
def _remember(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    unbiased = variance * (count / (count - 1).clamp(min=1))
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(unbiased, norm.momentum)
    norm.num_batches_tracked.add_(1)


class _MaskedStandardise(torch.autograd.Function):
    """Zero mean and unit variance over the real slots, with the gradient written out.

    Autograd would keep and traverse twice as many tensors of the size of ``values``: a fifth of a demo step.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, values: Tensor, keep: Tensor, eps: float, synchronised: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = values.flatten(0, 1)
        real = keep.flatten().to(values.dtype)
        total = sum_across if synchronised else _alone
        count = total(real.sum())
        mean = total(real @ rows) / count
        result = rows - mean
        variance = total(real @ result.square()) / count
        scale = torch.rsqrt(variance + eps)
        result *= scale
        ctx.save_for_backward(result, real, scale, count)
        ctx.total = total
        ctx.mark_non_differentiable(mean, variance, count)
        return result.view_as(values), mean, variance, count

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        result, real, scale, count = ctx.saved_tensors
        rows = gradient.flatten(0, 1)
        # A padded slot is no part of the statistics, but what it became depends on them.
        along_mean, along_scale = ctx.total(torch.stack([rows.sum(dim=0), (rows * result).sum(dim=0)])) / count
        through_statistics = torch.addcmul(along_mean, result, along_scale).mul_(real[:, None])
        return (rows - through_statistics).mul_(scale).view_as(gradient), None, None, None


def _alone(tensor: Tensor) -> Tensor:
    return tensor
