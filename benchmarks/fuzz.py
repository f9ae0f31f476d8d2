"""Check that mutated files are read, refused or written again, and nothing else.

    python benchmarks/fuzz.py --files 20000

Models, which `load` reads, and checkpoints, which `recover` reads, are mutated in three
ways:

damaged  bytes change, as on a failing disk or in a failing transfer
forged   any value in the header and any tensor changes, with a matching checksum, as an
         attacker would write the file
foreign  the file is of another type, or its header claims enormous sizes

Caches of decoded images are damaged. A fit has to notice it: its result is the same.

Print the number of files for each outcome. "loaded" means that the content of the file
is consistent (with a forged number of rounds, for example), and that `predict` works or
raises ValueError. "memory" is the growth of the peak memory of this process over all
files. For images, see fuzz_images.py.
"""

import argparse
import collections
import contextlib
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
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._utils.tensors import read_tensors, write_tensors

# Values that replace values of a header.
JUNK = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**70),
    1e308,
    float("nan"),
    0.5,
    "",
    "auto",
    "cpu",
    "cuda:99",
    "meta",
    "../../../etc/passwd",
    "\0",
    "ü" * 1000,
    "__import__('os').system('touch /tmp/evil')",
    "resnet18",
    "vgg16",
    "x" * 10**5,
    [],
    {},
    [[]],
    [1, 8, 8],
    [10**9, 8, 8],
    [10**6] * 3,
    [-1, 8, 8],
    [1] * 100,
    {"kind": "nearest"},
    {"__class__": "os.system"},
    [{"a": [{}]}],
    [None] * 3,
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8]
# Numbers that fill a tensor.
FILL_VALUES = [np.nan, np.inf, -1, 10**6]
# The file that unpickling a `Payload` creates.
EVIDENCE = Path(tempfile.gettempdir()) / "skdeepcluster-evil"


def save_estimators(path):
    """Return the content of the saved file and the images of several estimators."""
    # Images, rows and gray images with fixed gradients are saved in different ways.
    images = load_digits().images[:60].astype(np.uint8)
    settings = [
        (images, {"backbone": "mlp"}),
        (images.reshape(60, -1), {"n_pseudo_labels": 3, "n_neighbors": None}),
        (images[:, ::4, ::4], {"sobel": True, "head_norm": None}),
    ]
    saved = []
    for X, params in settings:
        model = DeepClusterEstimator(
            n_clusters=3, max_iter=1, epochs_per_iter=1, random_state=0, **params
        )
        model.fit(X).save(path)
        saved.append((path.read_bytes(), X))
    return saved


# Each mutation takes the content of a saved file, a random generator and the path of a
# file that it may use. It returns the mutated content.


def damage(content, rng, path):
    """Change, remove, insert or clear bytes."""
    mutated = bytearray(content)
    # The format is the size of the header, the header, and the tensors.
    # A cache has another format, in which these bytes are part of a longer header.
    header_end = min(8 + struct.unpack("<Q", content[:8])[0], len(content))
    # Most bytes are tensors, so damage is aimed at the header in two of three cases.
    end = [8, header_end, len(mutated)][rng.integers(3)]
    start, size = int(rng.integers(end)), int(rng.integers(1, 200))
    choice = rng.integers(7)
    if choice == 0:
        del mutated[start:]
    elif choice == 1:
        for _ in range(rng.integers(1, 9)):
            mutated[rng.integers(end)] ^= 1 << int(rng.integers(8))
    elif choice == 2:
        mutated[start : start + size] = rng.bytes(size)
    elif choice == 3:
        mutated[start : start + size] = b""
    elif choice == 4:
        mutated[start:start] = rng.bytes(size)
    elif choice == 5:
        mutated[start : start + size] = bytes(size)
    else:
        header_size = int(rng.integers(0, 2**63)) >> rng.integers(63)
        mutated[:8] = struct.pack("<Q", header_size)
    return bytes(mutated)


def iterate_paths(value, path=()):
    """Yield the path to each value inside nested dictionaries and lists."""
    yield path
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from iterate_paths(value[key], (*path, key))


def forge_value(metadata, rng):
    """Remove a value of the metadata, or replace it by junk."""
    paths = list(iterate_paths(metadata))
    # The first path is empty and leads to the metadata themselves.
    *parents, key = paths[rng.integers(1, len(paths))]
    container = metadata
    for parent in parents:
        container = container[parent]
    if rng.random() < 0.2:
        del container[key]
    else:
        container[key] = copy.deepcopy(JUNK[rng.integers(len(JUNK))])


def forge_tensor(tensors, rng):
    """Remove, rename, convert, reshape, empty, fill or replace a tensor."""
    names = sorted(tensors)
    name = names[rng.integers(len(names))]
    tensor = tensors[name]
    choice = rng.integers(7)
    if choice == 0:
        del tensors[name]
    elif choice == 1:
        tensors[f"{name}/../evil"] = tensors.pop(name)
    elif choice == 2:
        tensors[name] = tensor.to(DTYPES[rng.integers(len(DTYPES))])
    elif choice == 3:
        tensors[name] = tensor.reshape(-1, 1) if tensor.ndim else tensor[None]
    elif choice == 4:
        tensors[name] = tensor[:0] if tensor.ndim else tensor
    elif choice == 5:
        number = FILL_VALUES[rng.integers(len(FILL_VALUES))]
        # Integer tensors cannot hold NaN, so they are filled as float64 and cast.
        template = tensor if tensor.is_floating_point() else tensor.double()
        tensors[name] = torch.full_like(template, number).to(tensor.dtype)
    else:
        source = names[rng.integers(len(names))]
        tensors[name] = tensors.get(source, tensor).clone()


def forge(content, rng, path):
    """Change values and tensors, and write them with a matching checksum."""
    path.write_bytes(content)
    metadata, tensors = read_tensors(path)
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.6:
            forge_value(metadata, rng)
        else:
            forge_tensor(tensors, rng)
        # Nothing remains to be forged.
        if not metadata or not tensors:
            break
    write_tensors(path, metadata, tensors)
    return path.read_bytes()


class Payload:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (EVIDENCE,)


def replace_file(content, rng, path):
    """Return a file of another type, or a header that claims enormous sizes."""
    header_size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + header_size])
    choice = rng.integers(6)
    if choice == 0:
        # A zip bomb: ten megabytes of zeros, compressed.
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.pkl", bytes(10**7))
        return file.getvalue()
    if choice == 1:
        return pickle.dumps(Payload())
    if choice == 2:
        file = io.BytesIO()
        torch.save({"x": Payload()}, file)
        return file.getvalue()
    if choice == 3:
        return rng.bytes(int(rng.integers(5000)))
    names = [name for name in header if name != "__metadata__"]
    entry = header[names[rng.integers(len(names))]]
    if choice == 4:
        entry["shape"] = [int(10 ** rng.integers(3, 19)) for _ in range(3)]
    else:
        start = int(rng.integers(0, 2**40))
        entry["data_offsets"] = [start, start + int(rng.integers(0, 2**40))]
    # The first eight bytes of the format are the size of the header.
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + header_size :]


MUTATIONS = {"damaged": damage, "forged": forge, "foreign": replace_file}


def load_outcome(path, X):
    """Load a file and predict; return the outcome in words."""
    try:
        model = DeepClusterEstimator.load(path)
    except ValueError:
        return "ValueError"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    # A forged estimator may load, but then it has to work or to explain itself.
    try:
        model.predict(X)
    except ValueError:
        pass
    except Exception as error:
        return f"predict: {type(error).__name__}: {error}"
    return "loaded"


class Stop(Exception):
    """Ends a fit."""


def fuzz_models(n_files, folder, rng, counts):
    """Load mutated models, and count the outcomes."""
    path = folder / "mutated"
    saved = save_estimators(path)
    names = list(MUTATIONS)
    for number in range(n_files):
        content, X = saved[number % len(saved)]
        name = names[number // len(saved) % len(names)]
        mutated = MUTATIONS[name](content, rng, path)
        # Some mutations change nothing, such as clearing bytes that are zero.
        if mutated != content:
            path.write_bytes(mutated)
            counts["model", name, load_outcome(path, X)] += 1


def fuzz_checkpoints(n_files, folder, rng, counts):
    """Recover a fit from mutated checkpoints, and count the outcomes."""
    images = load_digits().images[:60].astype(np.uint8)

    def stop(history, fitted):
        if len(history) == 2:
            raise Stop

    model = DeepClusterEstimator(
        3,
        backbone="mlp",
        max_iter=3,
        epochs_per_iter=1,
        random_state=0,
        checkpoint_dir=folder / "checkpoints",
        callbacks=stop,
    )
    with contextlib.suppress(Stop):
        model.fit(images)
    (path,) = folder.glob("checkpoints/*/round_000001.safetensors")
    content = path.read_bytes()
    names = list(MUTATIONS)
    for number in range(n_files):
        name = names[number % len(names)]
        mutated = MUTATIONS[name](content, rng, folder / "mutated")
        if mutated == content:
            continue
        path.write_bytes(mutated)
        try:
            model.recover(images)
            outcome = "loaded"
        except ValueError:
            outcome = "ValueError"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        counts["checkpoint", name, outcome] += 1


def fuzz_caches(n_files, folder, rng, counts):
    """Fit with damaged caches of decoded images, and count the outcomes."""
    photos, cache_dir = folder / "photos", folder / "cache"
    photos.mkdir()
    for row, values in enumerate(load_digits().images[:60].astype(np.uint8)):
        Image.fromarray(values * 15).save(photos / f"{row:02d}.png")
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    model = DeepClusterEstimator(
        3, backbone=module, max_iter=1, epochs_per_iter=1, random_state=0, n_jobs=1
    )
    expected = model.fit(photos).transform(photos)
    model.set_params(cache_dir=cache_dir).fit(photos)
    contents = {path: path.read_bytes() for path in cache_dir.iterdir()}
    paths = list(contents)
    for number in range(n_files):
        path = paths[number % len(paths)]
        mutated = damage(contents[path], rng, None)
        if mutated == contents[path]:
            continue
        path.write_bytes(mutated)
        try:
            is_same = np.array_equal(model.fit(photos).transform(photos), expected)
            outcome = "same result" if is_same else "another result"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        counts["cache", "damaged", outcome] += 1


def peak_mib():
    """Return the largest resident memory of this process so far, in MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000, help="number of models")
    parser.add_argument(
        "--fits", type=int, default=2000, help="number of checkpoints, and of caches"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations")
    parser.add_argument("--json", default="fuzz.json", help="file to write")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    warnings.simplefilter("ignore")
    # Files are small, so threads would only cost time.
    torch.set_num_threads(1)
    counts = collections.Counter()
    start = time.perf_counter()
    growth = {}
    kinds = {
        "model": (fuzz_models, arguments.files),
        "checkpoint": (fuzz_checkpoints, arguments.fits),
        "cache": (fuzz_caches, arguments.fits),
    }
    with tempfile.TemporaryDirectory() as folder:
        for kind, (fuzz, n_files) in kinds.items():
            rng = np.random.default_rng(arguments.seed)
            # The first files of a kind fill caches and pools of memory.
            fuzz(n_files // 20, make_folder(folder, f"{kind} first"), rng, counts)
            peak_at_start = peak_mib()
            fuzz(n_files, make_folder(folder, kind), rng, counts)
            growth[kind] = peak_mib() - peak_at_start
    for (kind, name, outcome), count in sorted(counts.items()):
        print(f"{kind:12s}{name:10s}{count:8d}  {outcome[:200]}")
    changes = ", ".join(
        f"{change:+.0f} MiB ({kind})" for kind, change in growth.items()
    )
    print(
        f"{counts.total()} files in {time.perf_counter() - start:.0f} s; memory "
        f"{changes}; code executed: {EVIDENCE.exists()}"
    )
    rows = [
        {"kind": kind, "mutation": name, "outcome": outcome, "count": count}
        for (kind, name, outcome), count in counts.items()
    ]
    content = {"rows": rows, "growth_mib": growth, "executed": EVIDENCE.exists()}
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


def make_folder(parent, name):
    """Return a new folder."""
    folder = Path(parent) / name
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
