"""Batch norm over the batches of all processes together, on any device."""

import contextlib
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ._distributed import Ranks


def shared_batch_norm(ranks: Ranks) -> contextlib.AbstractContextManager:
    """Return the context in which training batch norm has the statistics of all.

    It changes no module, whatever it is made of: what counts is the function that all
    of them call. `torch.nn.SyncBatchNorm` computes the same, but on GPUs alone.
    """
    return contextlib.nullcontext() if ranks.size == 1 else _SharedBatchNorm(ranks)


class _SharedBatchNorm(TorchFunctionMode):
    def __init__(self, ranks: Ranks):
        super().__init__()
        self.ranks = ranks

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is functional.batch_norm:
            return self.batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def batch_norm(
        self,
        input: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        """Compute what `torch.nn.functional.batch_norm` does."""
        if not training:
            norms = running_mean, running_var, weight, bias, False, momentum, eps
            return functional.batch_norm(input, *norms)
        result, mean, variance, count = _Normalize.apply(
            input, weight, bias, eps, self.ranks
        )
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                unbiased = variance * (count / (count - 1))
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        return result


class _Normalize(torch.autograd.Function):
    """Normalise channels by the statistics of all processes, and scale them."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, eps: float, ranks: Ranks):
        """Return normalised x, and the mean, variance and count behind it."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        n = x.numel() // x.shape[1]
        # A process may have a single value of each channel.
        variance, mean = torch.var_mean(x.float(), axes, correction=0)
        variance, mean = variance.double(), mean.double()
        moments = torch.cat([n * mean, n * (variance + mean.square()), mean.new([n])])
        totals = ranks.sum_tensor(moments)
        count = totals[-1]
        mean, squares = (totals[:-1] / count).chunk(2)
        variance = (squares - mean.square()).clamp(min=0)
        mean, variance = mean.float(), variance.float()
        result = functional.batch_norm(x, mean, variance, weight, bias, eps=eps)
        deviation = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, deviation, count)
        ctx.eps, ctx.ranks = eps, ranks
        ctx.mark_non_differentiable(mean, variance, count)
        return result, mean, variance, count

    @staticmethod
    def backward(ctx: Any, slope, *_):
        """Return the gradients of all losses to x, and of this one to the rest."""
        x, weight, mean, deviation, count = ctx.saved_tensors
        given = torch.ones_like(mean) if weight is None else weight
        # The gradient as if this batch were the only one, and what the others change.
        own, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            *(slope, x, given, None, None, mean, deviation, True, ctx.eps),
            [True, True, True],
        )
        local = torch.stack([of_bias, of_weight]).float()
        total = ctx.ranks.sum_tensor(local.clone())
        missing = local * (x.shape[1] / x.numel()) - total / count.float()
        missing = missing * (given.float() * deviation)
        shape = [1, -1] + [1] * (x.ndim - 2)
        mean, deviation, level, steepness = (
            part.view(shape) for part in (mean, deviation, *missing)
        )
        change = (x.float() - mean).mul_(deviation * steepness).add_(level)
        gradient = own + change.to(own.dtype)
        if weight is None:
            return gradient, None, None, None, None
        return gradient, of_weight, of_bias, None, None
