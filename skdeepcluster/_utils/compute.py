"""Device and precision that a network runs in."""

from dataclasses import dataclass

import torch

from .device import autocast


@dataclass(frozen=True)
class Compute:
    """Device and precision that a network runs in.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype
        Precision of convolutions and matrix products: float32 or bfloat16.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32

    def autocast(self) -> torch.autocast:
        """Return the context in which a network computes in `dtype`."""
        return autocast(self.device, self.dtype)

    def move(self, batch: torch.Tensor) -> torch.Tensor:
        """Move a batch to the device, in its own dtype and in the fastest layout."""
        layout = torch.channels_last if batch.ndim == 4 else torch.contiguous_format
        return batch.to(self.device, non_blocking=True, memory_format=layout)
