"""Batch norm over the batches of all processes together, on any device."""

import contextlib
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .._utils.distributed import Processes


def synchronized_batch_norm(processes: Processes) -> contextlib.AbstractContextManager:
    """Return the context in which training batch norm has the statistics of all.

    It changes no module, whatever it is made of: what counts is the function that all
    of them call. `torch.nn.SyncBatchNorm` computes the same, but on GPUs alone.
    """
    return (
        contextlib.nullcontext() if processes.size == 1 else _SharedBatchNorm(processes)
    )


class _SharedBatchNorm(TorchFunctionMode):
    def __init__(self, processes: Processes):
        super().__init__()
        self.processes = processes

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
            input, weight, bias, eps, self.processes
        )
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                unbiased = variance * (count / (count - 1))
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        return result


class _Normalize(torch.autograd.Function):
    """Normalize channels by the statistics of all processes, and scale them."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, eps: float, processes: Processes):
        """Return normalized x, and the mean, variance and count behind it."""
        n = x.numel() // x.shape[1]
        # What is updated is thrown away, but decides on float32 for x in bfloat16.
        blank = x.new_zeros(x.shape[1], dtype=torch.float32)
        mean, variance = torch.batch_norm_update_stats(x, blank, blank.clone(), 0.0)
        mean, variance = mean.double(), variance.double()
        moments = torch.cat([n * mean, n * (variance + mean.square()), mean.new([n])])
        totals = processes.sum_tensor(moments)
        count = totals[-1]
        mean, squares = (totals[:-1] / count).chunk(2)
        variance = (squares - mean.square()).clamp(min=0)
        mean, variance = mean.float(), variance.float()
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.processes = eps, processes
        ctx.mark_non_differentiable(mean, variance, count)
        result = functional.batch_norm(x, mean, variance, weight, bias, eps=eps)
        return result, mean, variance, count

    @staticmethod
    def backward(ctx: Any, slope, *_):
        """Return the gradients of all losses to x, and of this one to the rest."""
        x, weight, mean, variance, count = ctx.saved_tensors
        given = torch.ones_like(mean) if weight is None else weight
        # As if mean and variance were constants, and then by way of these.
        gradient, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            *(slope, x, given, mean, variance, None, None, False, ctx.eps),
            [True, True, True],
        )
        total = ctx.processes.sum_tensor(torch.stack([of_bias, of_weight]).float())
        scale = -given.float() * (variance + ctx.eps).rsqrt() / count.float()
        level, steepness = scale * total
        norms = mean, variance, steepness, level
        gradient += functional.batch_norm(x, *norms, eps=ctx.eps)
        if weight is None:
            return gradient, None, None, None, None
        return gradient, of_weight, of_bias, None, None
