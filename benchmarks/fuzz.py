"""Does any file make `load` do anything but load it or raise ValueError?

    python benchmarks/fuzz.py --files 20000

Saved estimators are mutated. "damaged" files are changed byte by byte, as disks and
transfers do. "forged" ones have other contents but a checksum that fits, as somebody
with bad intentions would write them: any value, any tensor, in any place of the header.
"foreign" ones are of other kinds, or claim enormous sizes.

Prints how many files had which outcome. "loaded" means that what the file holds is a
consistent estimator (a forged number of rounds, say), whose `predict` works or raises
ValueError. "memory" is the growth of this process's peak over all files.
"""

import argparse
import collections
import copy
import io
import json
import pickle
import resource
import struct
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator, _tensors

JUNK = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**70), 1e308, float("nan"), 0.5),
    *("", "auto", "cpu", "cuda:99", "meta", "../../../etc/passwd", "\0", "ü" * 1000),
    *("__import__('os').system('touch /tmp/evil')", "resnet18", "vgg16", "x" * 10**5),
    *([], {}, [[]], [1, 8, 8], [10**9, 8, 8], [10**6] * 3, [-1, 8, 8], [1] * 100),
    *({"kind": "nearest"}, {"__class__": "os.system"}, [{"a": [{}]}], [None] * 3),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8]


def saved_files(folder):
    """Save estimators of several kinds, and return the files' contents."""
    X = load_digits().images[:60].astype(np.uint8)
    quick = {"n_clusters": 3, "max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    kinds = [
        (X, {"backbone": "mlp"}),
        (X.reshape(60, -1), {"n_pseudo_labels": 3, "n_neighbors": None}),
        (X[:, ::4, ::4], {"sobel": True, "head_norm": None}),
    ]
    contents = []
    for data, params in kinds:
        model = DeepClusterEstimator(**quick, **params).fit(data)
        model.save(folder / "saved")
        contents.append(((folder / "saved").read_bytes(), data))
    return contents


def damaged(content, rng):
    """Change some bytes."""
    data = bytearray(content)
    n_header = 8 + struct.unpack("<Q", content[:8])[0]
    end = [8, n_header, len(data)][rng.integers(3)]
    place, size = int(rng.integers(end)), int(rng.integers(1, 200))
    kind = rng.integers(7)
    if kind == 0:
        del data[place:]
    elif kind == 1:
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(end)] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        data[place : place + size] = rng.bytes(size)
    elif kind == 3:
        data[place : place + size] = b""
    elif kind == 4:
        data[place:place] = rng.bytes(size)
    elif kind == 5:
        data[place : place + size] = bytes(size)
    else:
        data[:8] = struct.pack("<Q", int(rng.integers(0, 2**63)) >> rng.integers(63))
    return bytes(data)


def places(value, path=()):
    """Return the paths to all values inside nested ones."""
    yield path
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*path, key))


def forged(content, rng):
    """Put junk anywhere, with a checksum that fits."""
    tensors = load_tensors(content)
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])["__metadata__"]
    told = json.loads(header[_tensors.KEY])
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.6:
            everywhere = list(places(told))
            (*above, key) = everywhere[rng.integers(1, len(everywhere))]
            parent = told
            for step in above:
                parent = parent[step]
            if rng.random() < 0.2:
                del parent[key]
            else:
                parent[key] = copy.deepcopy(JUNK[rng.integers(len(JUNK))])
        else:
            names = sorted(tensors)
            name = names[rng.integers(len(names))]
            value = tensors[name]
            kind = rng.integers(7)
            if kind == 0:
                del tensors[name]
            elif kind == 1:
                tensors[f"{name}/../evil"] = tensors.pop(name)
            elif kind == 2:
                tensors[name] = value.to(DTYPES[rng.integers(len(DTYPES))])
            elif kind == 3:
                tensors[name] = value.reshape(-1, 1) if value.ndim else value[None]
            elif kind == 4:
                tensors[name] = value[:0] if value.ndim else value
            elif kind == 5:
                number = [np.nan, np.inf, -1, 10**6][rng.integers(4)]
                filled = value if value.is_floating_point() else value.double()
                tensors[name] = torch.full_like(filled, number).to(value.dtype)
            else:
                other = names[rng.integers(len(names))]
                tensors[name] = tensors.get(other, value).clone()
        if not told or not tensors:
            break
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    text = json.dumps(told)
    header = {_tensors.KEY: text, "digest": _tensors._digest(text, tensors)}
    return save_tensors(tensors, metadata=header)


class Evil:
    """What a pickle would execute."""

    def __reduce__(self):
        return Path.touch, (Path(tempfile.gettempdir()) / "skdeepcluster-evil",)


def foreign(content, rng):
    """Return a file of another kind, or one whose header claims too much."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    kind = rng.integers(6)
    if kind == 0:  # a zip bomb
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.pkl", bytes(10**7))
        return file.getvalue()
    if kind == 1:
        return pickle.dumps(Evil())
    if kind == 2:
        file = io.BytesIO()
        torch.save({"x": Evil()}, file)
        return file.getvalue()
    if kind == 3:
        return rng.bytes(int(rng.integers(5000)))
    names = [name for name in header if name != "__metadata__"]
    entry = header[names[rng.integers(len(names))]]
    if kind == 4:
        entry["shape"] = [int(10 ** rng.integers(3, 19)) for _ in range(3)]
    else:
        start = int(rng.integers(0, 2**40))
        entry["data_offsets"] = [start, start + int(rng.integers(0, 2**40))]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def outcome(path, X):
    try:
        model = DeepClusterEstimator.load(path)
    except ValueError:
        return "ValueError"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    try:
        model.predict(X)
    except ValueError:
        pass
    except Exception as error:
        return f"predict: {type(error).__name__}: {error}"
    return "loaded"


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="fuzz.json", help="file to write")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    evil = Path(tempfile.gettempdir()) / "skdeepcluster-evil"
    counts = collections.Counter()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        contents = saved_files(folder)
        before = peak()
        rng = np.random.default_rng(arguments.seed)
        for number in range(arguments.files):
            content, X = contents[number % len(contents)]
            kind = (damaged, forged, foreign)[number // len(contents) % 3]
            mutated = kind(content, rng)
            if mutated == content:
                continue
            (folder / "mutated").write_bytes(mutated)
            counts[kind.__name__, outcome(folder / "mutated", X)] += 1
    for (kind, found), count in sorted(counts.items()):
        print(f"{kind:10s}{count:8d}  {found[:200]}")
    grown, seconds = peak() - before, time.perf_counter() - start
    print(
        f"{counts.total()} files of {min(len(c) for c, _ in contents) // 1024} to "
        f"{max(len(c) for c, _ in contents) // 1024} KiB in {seconds:.0f} s; memory "
        f"{grown:+.0f} MiB; code executed: {evil.exists()}"
    )
    rows = [{"kind": k, "outcome": o, "count": c} for (k, o), c in counts.items()]
    told = {"rows": rows, "grown_mib": grown, "executed": evil.exists()}
    Path(arguments.json).write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
