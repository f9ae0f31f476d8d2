"""Tensors and plain values -> one file without pickle, and back."""

import hashlib
import json
import os
from collections import deque
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from .files import write_atomically

KEY = "skdeepcluster"  # of the JSON text in the file's header


def pack(value, tensors: dict[str, torch.Tensor], name: str = "state"):
    """Return nested values as JSON has them, and put their tensors into `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(value)
        return {"array": name}
    if isinstance(value, dict):
        return {k: pack(v, tensors, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple | deque):
        return [pack(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]
    return value


def unpack(value, tensors: dict[str, torch.Tensor]):
    """Return the values that `pack` was given; sequences are lists."""
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        if value.keys() == {"array"}:
            return tensors[value["array"]].numpy()
        return {k: unpack(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    return value


def write_tensors(
    path: str | os.PathLike, told: dict, tensors: dict[str, torch.Tensor]
) -> None:
    """Write tensors in safetensors' format, with `told` as JSON in its header."""
    # Each in its own memory: safetensors refuses tensors that share some.
    own = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    text = json.dumps(told)
    header = {KEY: text, "digest": _digest(text, own)}
    content = safetensors.torch.save(own, metadata=header)
    with write_atomically(Path(path)) as file:
        file.write(content)


def read_tensors(path: str | os.PathLike) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read what `write_tensors` wrote; no more memory is taken than the file's size.

    Raises
    ------
    Exception
        Of many kinds, if the file is another or damaged.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if KEY not in header:
            raise ValueError("no estimator was saved in it")
        # Copies: what safetensors gives is a map of the file, and would change with it.
        names = file.keys()
        tensors = {name: file.get_tensor(name).clone() for name in names}
    if header.get("digest") != _digest(header[KEY], tensors):
        raise ValueError("it is damaged: its checksum does not fit")
    return json.loads(header[KEY]), tensors


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        values = tensors[name].contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        if values.numel():
            digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
