"""Independent random streams from one seed, apart from all global generators."""

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils import check_random_state

from .process_lock import hold_process_lock


@dataclass(frozen=True)
class RandomStreams:
    """Independent seeds for each purpose and round, all derived from one integer.

    A stream is addressed by purpose and round, not consumed in sequence. So the draws
    of one step of a fit never depend on the number of draws of another step.

    Parameters
    ----------
    entropy : int
        Integer from which all seeds are derived.
    """

    entropy: int

    @classmethod
    def from_random_state(cls, random_state) -> "RandomStreams":
        """Return the streams of a `random_state`; None draws new entropy."""
        if random_state is None:
            # check_random_state(None) would advance numpy's global generator.
            return cls(int(np.random.SeedSequence().generate_state(1)[0]))
        return cls(int(check_random_state(random_state).randint(2**31 - 1)))

    def seed(self, purpose: str, *key: int) -> int:
        """Return a seed in [0, 2**31), a range that faiss and torch both accept."""
        spawn_key = (zlib.crc32(purpose.encode()), *key)
        sequence = np.random.SeedSequence(self.entropy, spawn_key=spawn_key)
        return int(sequence.generate_state(1)[0] >> 1)

    def numpy(self, purpose: str, *key: int) -> np.random.Generator:
        """Return a new generator of numpy."""
        return np.random.default_rng(self.seed(purpose, *key))

    def sample(self, purpose: str, n: int, size: int) -> np.ndarray:
        """Return at most `size` random rows out of `n`, in ascending order."""
        return np.sort(self.numpy(purpose).permutation(n)[:size])

    def torch(self, purpose: str, *key: int) -> torch.Generator:
        """Return a new generator of torch.

        It is on the CPU, so that draws are the same on each device.
        """
        return torch.Generator().manual_seed(self.seed(purpose, *key))


def torch_generators(device: torch.device) -> list[torch.Generator]:
    """Return the default generators of torch that a fit on `device` draws from."""
    if device.type == "cpu":
        return [torch.default_generator]
    if device.type == "mps":
        return [torch.default_generator, torch.mps._get_default_mps_generator()]
    backend = torch.get_device_module(device)
    # Before this call the backend has no generators.
    backend.init()
    number = backend.current_device() if device.index is None else device.index
    return [torch.default_generator, backend.default_generators[number]]


# State of each generator before the first of the present blocks, and their number.
# Threads that release the process lock in between do not end in the opposite order.
_OUTER_STATES: dict[torch.Generator, tuple[torch.Tensor, int]] = {}


@contextlib.contextmanager
def isolated_torch_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's default generators inside the block, and restore them at its end.

    `torch.nn.init` and dropout layers can draw from no other generators. The generators
    of other devices stay as they are. Blocks of several threads run one after another.
    """
    with hold_process_lock():
        generators = torch_generators(device)
        states = [generator.get_state() for generator in generators]
        for generator, state in zip(generators, states, strict=True):
            outer, n_blocks = _OUTER_STATES.get(generator, (state, 0))
            _OUTER_STATES[generator] = outer, n_blocks + 1
        try:
            for generator in generators:
                # torch.manual_seed would seed all devices.
                generator.manual_seed(seed)
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                outer, n_blocks = _OUTER_STATES.pop(generator)
                if n_blocks > 1:
                    _OUTER_STATES[generator] = outer, n_blocks - 1
                generator.set_state(state if n_blocks > 1 else outer)
