"""A lack of memory says what there is none for, and what to lower."""

import numpy as np
import pytest
import torch

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._utils import memory as memory_module
from skdeepcluster._utils.memory import explain_memory_error, format_bytes


def too_much_for_numpy():
    np.empty(2**60, np.uint8)


def too_much_for_torch():
    torch.empty(2**55, dtype=torch.uint8)


def too_much_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def nothing_said():
    raise MemoryError


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        (too_much_for_numpy, r"Unable to allocate 1\.00 EiB"),
        (too_much_for_torch, "tried to allocate 36028797018963968 bytes"),
        (too_much_on_a_gpu, r"Tried to allocate 2\.00 GiB"),
        (nothing_said, "MemoryError"),
    ],
)
def test_what_the_memory_is_for_and_what_to_lower(call, cause):
    words = rf"not enough memory for the thing \(3 GiB\)\. Lower it\. \(.*{cause}"
    # What is named inside is not renamed outside.
    with (
        pytest.raises(MemoryError, match=words),
        explain_memory_error("all", "Lower all."),
    ):
        with explain_memory_error("the thing", "Lower it.", 3 * 2**30):
            call()


def test_other_errors_are_left_alone():
    for error in (RuntimeError("mat1 and mat2"), ValueError("memory")):
        with (
            pytest.raises(type(error), match=str(error)),
            explain_memory_error("x", "y"),
        ):
            raise error


def test_sizes_are_readable():
    sizes = [0, 1023, 1024, 1.5 * 2**20, 2**40, 2**60]
    expected = [
        "0 bytes",
        "1.02e+03 bytes",
        "1 KiB",
        "1.5 MiB",
        "1 TiB",
        "1.05e+06 TiB",
    ]
    assert list(map(format_bytes, sizes)) == expected


def test_each_part_of_a_fit_names_its_parameter(digits_images, monkeypatch):
    images = digits_images[0][:100]
    model = DeepClusterEstimator(3, max_iter=1, epochs_per_iter=1, random_state=0)

    class Hungry(torch.nn.Module):
        """Needs too much, in one of the ways that a network is used."""

        def __init__(self, training, grad):
            super().__init__()
            self.layer, self.when = torch.nn.Linear(64, 4), (training, grad)

        def forward(self, x):
            if (self.training, torch.is_grad_enabled()) == self.when:
                if self.seen:
                    too_much_for_torch()
                self.seen = True
            return self.layer(x.flatten(1))

    for when, name in (
        ((True, False), "calibration.* Lower batch_size"),
        ((True, True), "training on batches of 64.* Lower batch_size=64"),
        ((False, False), "a forward pass.* Lower image_size"),
    ):
        Hungry.seen = when[0]  # the network's output is looked at before, in evaluation
        with pytest.raises(MemoryError, match=name):
            model.set_params(backbone=Hungry(*when)).fit(images)
        assert not [name for name in vars(model) if name.endswith("_")]
    model.set_params(backbone="mlp")
    monkeypatch.setattr(memory_module, "SEARCH_BYTES", 2**60)
    with pytest.raises(
        MemoryError, match=r"a search by faiss \(1.05e\+06 TiB\).*n_jobs"
    ):
        model.fit(images)
