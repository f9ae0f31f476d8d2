"""Device, precision and threads follow the parameters and the machine."""

import pytest
import torch

from skdeepcluster._utils.device import (
    autocast,
    multiplies_bfloat16,
    resolve_device,
    resolve_precision,
)

CPU = torch.device("cpu")
ACCELERATORS = ["cuda", "xpu", "mps"]


@pytest.fixture
def machine(monkeypatch):
    """Return a function that simulates a machine with `count` devices of each name."""

    def simulate(*names, count=1):
        for name in ACCELERATORS:
            module = getattr(torch, name)
            monkeypatch.setattr(module, "is_available", lambda name=name: name in names)
            monkeypatch.setattr(module, "device_count", lambda: count)

    return simulate


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        ((), "cpu"),
        (("mps",), "mps"),
        (("mps", "xpu"), "xpu"),
        (("mps", "xpu", "cuda"), "cuda"),
    ],
)
def test_auto_takes_the_best_device(machine, available, expected):
    machine(*available)
    assert resolve_device("auto") == torch.device(expected)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"])
def test_cpu_is_always_available(machine, device):
    machine("cuda")
    assert resolve_device(device).type == "cpu"


@pytest.mark.parametrize("device", ["cuda:1", torch.device("cuda", 1), "cuda"])
def test_available_device(machine, device):
    machine("cuda", count=2)
    assert resolve_device(device) == torch.device(device)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "best"])
def test_unknown_device(device):
    with pytest.raises(ValueError, match=f"device='{device}' is no device.*'auto'"):
        resolve_device(device)


@pytest.mark.parametrize("device", [*ACCELERATORS, "meta", torch.device("cuda:3")])
def test_unavailable_device(machine, device):
    machine()
    with pytest.raises(
        ValueError, match=f"device='{device}' is not available.*which has 'cpu'. Use"
    ):
        resolve_device(device)


def test_unavailable_device_lists_the_available_ones(machine):
    machine("xpu")
    with pytest.raises(ValueError, match="which has 'cpu', 'xpu'"):
        resolve_device("cuda")


@pytest.mark.parametrize("device", ["cpu:1", "cuda:2"])
def test_device_index_out_of_range(machine, device):
    machine("cuda", count=2)
    with pytest.raises(ValueError, match=f"device='{device}'.*it has [12] c.* from 0"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_named_precision_is_used(precision, device):
    dtype = resolve_precision(precision, torch.device(device))
    assert dtype == getattr(torch, precision)


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
    ],
)
def test_auto_precision_on_the_cpu(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("auto", CPU) == expected
    assert multiplies_bfloat16(CPU) == (avx512 or amx)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)],
)
def test_auto_precision_on_cuda(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", torch.device("cuda")) == expected


def test_auto_precision_elsewhere():
    assert resolve_precision("auto", torch.device("xpu")) == torch.bfloat16
    assert resolve_precision("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_products_in_the_dtype(dtype):
    square = torch.eye(3)
    with autocast(CPU, dtype):
        assert (square @ square).dtype == dtype
    assert (square @ square).dtype == torch.float32
