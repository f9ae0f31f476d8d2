"""Batch-norm statistics: calibrated before clustering, shared between processes."""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .._inputs.sources import Source
from .._utils.compute import Compute
from .._utils.distributed import SINGLE_PROCESS, Processes
from .._utils.memory import explain_memory_error
from .network import Sobel, Standardize, TrainableNetwork
from .sampling import split_batches

# Number of images that batch-norm statistics are computed from.
CALIBRATION_ROWS = 4096


@explain_memory_error("batch-norm calibration", "Lower batch_size.")
def calibrate_batch_norm(
    network: TrainableNetwork,
    source: Source,
    rows: np.ndarray,
    batch_size: int,
    compute: Compute,
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Set batch-norm statistics to the statistics of `rows`, without augmentation.

    The running statistics of a fresh network are constants. Without calibration the
    first clustering, in evaluation mode, sees other features than training does.
    """
    network.train()
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    momenta = [norm.momentum for norm in norms]
    batches = [
        batch_rows[processes.shard(len(batch_rows)).rows]
        for batch_rows in split_batches(rows, batch_size)
    ]
    try:
        for norm in norms:
            norm.reset_running_stats()
            # Without momentum, running statistics are plain averages over batches.
            norm.momentum = None
        with (
            torch.no_grad(),
            compute.autocast(),
            synchronized_batch_norm(processes),
        ):
            for batch in source.batches(batches):
                network.points(compute.move(batch))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if processes.size > 1 and has_changing_buffers(network):
        # Each process has updated the buffers from its own images.
        _copy_buffers_of_first(network, processes)


def has_changing_buffers(network: TrainableNetwork) -> bool:
    """Return whether training may change buffers besides running statistics.

    Training does not read the running statistics of batch norm, and calibration
    computes them anew before anything else does. They may differ between processes.
    """
    known_classes = nn.modules.batchnorm._BatchNorm, Standardize, Sobel
    return any(
        True
        for module in network.modules()
        if not isinstance(module, known_classes)
        for _ in module.buffers(recurse=False)
    )


def _copy_buffers_of_first(network: TrainableNetwork, processes: Processes) -> None:
    """Set the buffers of all processes to the buffers of the first process."""
    modules = list(network.modules())
    buffers = [buffer for m in modules for buffer in m.buffers(recurse=False)]
    values = processes.run_on_first(lambda: [buffer.cpu() for buffer in buffers])
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def synchronized_batch_norm(
    processes: Processes,
) -> contextlib.AbstractContextManager:
    """Return the context in which batch norm uses the statistics of all processes.

    `torch.nn.SyncBatchNorm` computes the same, but runs on GPUs only and has to replace
    the modules of the network. This context intercepts the function that every batch
    norm calls, so that it works on any device and changes no module.
    """
    if processes.size == 1:
        return contextlib.nullcontext()
    return _SynchronizedBatchNorm(processes)


class _SynchronizedBatchNorm(TorchFunctionMode):
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
        """Compute `torch.nn.functional.batch_norm` over all processes."""
        if not training:
            return functional.batch_norm(
                input,
                running_mean,
                running_var,
                weight,
                bias,
                training=False,
                momentum=momentum,
                eps=eps,
            )
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
        """Return normalized x with the mean, variance and count of all processes."""
        n = x.numel() // x.shape[1]
        # The updated buffer is discarded. Its dtype makes torch compute the statistics
        # of bfloat16 input in float32.
        buffer = x.new_zeros(x.shape[1], dtype=torch.float32)
        mean, variance = torch.batch_norm_update_stats(x, buffer, buffer.clone(), 0.0)
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
        """Return the gradient of all losses for x, and of the local loss otherwise.

        DistributedDataParallel averages the gradients of weight and bias later.
        """
        x, weight, mean, variance, count = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        # First as if mean and variance were constants, ...
        gradient, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            slope,
            x,
            scale,
            mean,
            variance,
            None,
            None,
            False,
            ctx.eps,
            [True, True, True],
        )
        # ... then through mean and variance, which all processes contribute to.
        total = ctx.processes.sum_tensor(torch.stack([of_bias, of_weight]).float())
        factor = -scale.float() * (variance + ctx.eps).rsqrt() / count.float()
        through_mean, through_variance = factor * total
        gradient += functional.batch_norm(
            x, mean, variance, through_variance, through_mean, eps=ctx.eps
        )
        if weight is None:
            return gradient, None, None, None, None
        return gradient, of_weight, of_bias, None, None
