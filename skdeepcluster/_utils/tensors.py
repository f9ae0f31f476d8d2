"""Files of tensors and plain values, without pickle."""

import hashlib
import json
import os
from collections import deque
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from .files import open_utf8_path, write_atomically

# Name of the JSON text in the header of a file.
KEY = "skdeepcluster"


def pack(value, tensors: dict[str, torch.Tensor], name: str = "state"):
    """Return nested values as JSON values, and move their tensors to `tensors`.

    Parameters
    ----------
    value : nested dict, list, tuple or deque
        Tensors, arrays and plain values.
    tensors : dict
        Dictionary that gets the tensors.
    name : str, default="state"
        Name of the value among the tensors.
    """
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(value)
        return {"array": name}
    if isinstance(value, dict):
        return {
            key: pack(entry, tensors, f"{name}.{key}") for key, entry in value.items()
        }
    if isinstance(value, list | tuple | deque):
        return [pack(entry, tensors, f"{name}.{i}") for i, entry in enumerate(value)]
    return value


def unpack(value, tensors: dict[str, torch.Tensor]):
    """Return the values that `pack` has packed; tuples and deques become lists."""
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        if value.keys() == {"array"}:
            return tensors[value["array"]].numpy()
        return {key: unpack(entry, tensors) for key, entry in value.items()}
    if isinstance(value, list):
        return [unpack(entry, tensors) for entry in value]
    return value


def write_tensors(
    path: str | os.PathLike,
    metadata: dict,
    tensors: dict[str, torch.Tensor],
    argument: str | None = None,
) -> None:
    """Write tensors in safetensors' format, with metadata as JSON in the header.

    `argument` is the user's argument in errors, see `write_atomically`.
    """
    # Safetensors refuses tensors that share memory, hence the copies.
    copies = {
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in tensors.items()
    }
    text = json.dumps(metadata)
    header = {KEY: text, "digest": _digest(text, copies)}
    content = safetensors.torch.save(copies, metadata=header)
    target = Path(os.fsdecode(path))
    with write_atomically(target, argument, n_bytes=len(content)) as file:
        file.write(content)


def read_metadata(path: str | os.PathLike) -> dict:
    """Return the metadata of a file without its tensors, which may be damaged.

    Raises
    ------
    Exception
        If the file has no metadata that `write_tensors` wrote.
    """
    with open(path, "rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        # The file of a stranger may name any size.
        if n_bytes > os.fstat(file.fileno()).st_size:
            raise ValueError("it ends within its header")
        header = json.loads(file.read(n_bytes))
    return json.loads(header["__metadata__"][KEY])


def read_tensors(path: str | os.PathLike) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return metadata and tensors of a file, in no more memory than the file's size.

    Raises
    ------
    Exception
        If the file is damaged or has another content. Damage may cause any error.
    """
    with (
        open_utf8_path(path) as utf8_path,
        safetensors.safe_open(utf8_path, framework="pt") as file,
    ):
        header = file.metadata() or {}
        if KEY not in header:
            raise ValueError("no estimator was saved in it")
        # Tensors of safetensors are views of the file and would change with it.
        names = file.keys()
        tensors = {name: file.get_tensor(name).clone() for name in names}
    if header.get("digest") != _digest(header[KEY], tensors):
        raise ValueError("it is damaged: its checksum does not fit")
    return json.loads(header[KEY]), tensors


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    """Return a checksum. It is part of the file's format, unlike `hash_content`."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        values = tensors[name].contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        if values.numel():
            digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
