"""One seed -> independent streams; the global generators are never touched."""

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils import check_random_state


@dataclass(frozen=True)
class RandomStreams:
    """Independent seeds for every purpose and round, all derived from one integer.

    A stream is addressed by name and round, not consumed in sequence: what one
    part of a fit draws never depends on how much another part drew.
    """

    entropy: int

    @classmethod
    def from_random_state(cls, random_state) -> "RandomStreams":
        """Read scikit-learn's `random_state`; None takes fresh entropy."""
        if random_state is None:
            # check_random_state(None) would hand out, and advance, numpy's global one.
            return cls(int(np.random.SeedSequence().generate_state(1)[0]))
        return cls(int(check_random_state(random_state).randint(2**31 - 1)))

    def seed(self, purpose: str, *key: int) -> int:
        """Return a seed in [0, 2**31), as faiss (signed) and torch both accept."""
        spawn_key = (zlib.crc32(purpose.encode()), *key)
        sequence = np.random.SeedSequence(self.entropy, spawn_key=spawn_key)
        return int(sequence.generate_state(1)[0] >> 1)

    def numpy(self, purpose: str, *key: int) -> np.random.Generator:
        """Return a numpy generator of its own."""
        return np.random.default_rng(self.seed(purpose, *key))

    def sample(self, purpose: str, n: int, size: int) -> np.ndarray:
        """Return `size` random rows of `n`, or all if there are no more, in order."""
        return np.sort(self.numpy(purpose).permutation(n)[:size])

    def torch(self, purpose: str, *key: int) -> torch.Generator:
        """Return a CPU generator of its own: the same draws whatever the device."""
        return torch.Generator().manual_seed(self.seed(purpose, *key))


def torch_generators(device: torch.device) -> list[torch.Generator]:
    """Return torch's default generators that a fit on `device` draws from."""
    if device.type == "cpu":
        return [torch.default_generator]
    if device.type == "mps":
        return [torch.default_generator, torch.mps._get_default_mps_generator()]
    there = torch.get_device_module(device)
    there.init()  # it has no generators before
    number = there.current_device() if device.index is None else device.index
    return [torch.default_generator, there.default_generators[number]]


@contextlib.contextmanager
def isolated_torch_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's default generators inside the block and restore them after it.

    For what can only draw from them: `torch.nn.init` and dropout layers. Other devices
    than this one are not touched.
    """
    generators = torch_generators(device)
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            # Not torch.manual_seed, which would seed all devices.
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
