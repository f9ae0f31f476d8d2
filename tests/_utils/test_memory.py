"""An error for a lack of memory names its purpose and the parameter to lower."""

import numpy as np
import pytest
import torch

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._utils import memory as memory_module
from skdeepcluster._utils.memory import explain_memory_error, format_bytes


def exhaust_numpy():
    np.empty(2**60, np.uint8)


def exhaust_torch():
    torch.empty(2**55, dtype=torch.uint8)


def exhaust_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def raise_without_text():
    raise MemoryError


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        (exhaust_numpy, r"Unable to allocate 1\.00 EiB"),
        (exhaust_torch, "tried to allocate 36028797018963968 bytes"),
        (exhaust_gpu, r"Tried to allocate 2\.00 GiB"),
        (raise_without_text, "MemoryError"),
    ],
)
def test_error_names_purpose_and_remedy(call, cause):
    message = rf"not enough memory for the thing \(3 GiB\)\. Lower it\. \(.*{cause}"
    # The outer block does not replace the purpose of the inner block.
    with (
        pytest.raises(MemoryError, match=message),
        explain_memory_error("all", "Lower all."),
        explain_memory_error("the thing", "Lower it.", 3 * 2**30),
    ):
        call()


def test_other_errors_are_unchanged():
    for error in (RuntimeError("mat1 and mat2"), ValueError("memory")):
        with (
            pytest.raises(type(error), match=str(error)),
            explain_memory_error("x", "y"),
        ):
            raise error


def test_sizes_have_a_suitable_unit():
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


def test_each_step_of_a_fit_names_its_parameter(digits_images, monkeypatch):
    images = digits_images[0][:100]
    model = DeepClusterEstimator(3, max_iter=1, epochs_per_iter=1, random_state=0)

    class ExhaustingNetwork(torch.nn.Module):
        """A network that needs too much memory in one mode."""

        def __init__(self, training, grad):
            super().__init__()
            self.layer, self.mode = torch.nn.Linear(64, 4), (training, grad)

        def forward(self, x):
            if (self.training, torch.is_grad_enabled()) == self.mode:
                if self.was_called:
                    exhaust_torch()
                self.was_called = True
            return self.layer(x.flatten(1))

    for mode, name in (
        ((True, False), "calibration.* Lower batch_size"),
        ((True, True), "training on batches of 64.* Lower batch_size=64"),
        ((False, False), "a forward pass.* Lower image_size"),
    ):
        # The first call in evaluation only reads the size of the output.
        ExhaustingNetwork.was_called = mode[0]
        with pytest.raises(MemoryError, match=name):
            model.set_params(backbone=ExhaustingNetwork(*mode)).fit(images)
        assert not [name for name in vars(model) if name.endswith("_")]
    model.set_params(backbone="mlp")
    monkeypatch.setattr(memory_module, "SEARCH_BYTES", 2**60)
    with pytest.raises(
        MemoryError, match=r"a search by faiss \(1.05e\+06 TiB\).*n_jobs"
    ):
        model.fit(images)
