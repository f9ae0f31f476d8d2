"""What does a fit survive?

    python benchmarks/faults.py             (every fault, on digits)
    python benchmarks/faults.py --fashion   (also a fit of 5,000 images, killed 5 times)

Each row is a fault: how often it was tried, how often the fit came through it, and what
was lost. Coming through means, unless the row says otherwise, that the fit or the one
that goes on after it ends bit for bit as one that nothing happened to. The fits run in
processes of their own, which are really killed, starved and interrupted.

"soak" is many fits in one process; what is lost there is memory, threads, open files
and temporary files that remain.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import re
import resource
import shutil
import signal
import tempfile
import threading
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import joblib
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

from skdeepcluster import DeepClusterEstimator, _checkpoints
from skdeepcluster.datasets import load_fashion_mnist

CONTEXT = multiprocessing.get_context("forkserver")  # processes that start at once
CONTEXT.set_forkserver_preload(["skdeepcluster", "safetensors.torch", "torch._dynamo"])
QUICK = {
    "n_clusters": 4,
    "max_iter": 4,
    "epochs_per_iter": 3,
    "n_jobs": 1,
    "random_state": 0,
}
MIB = 2**20


@dataclass
class Row:
    fault: str
    tried: int
    recovered: int
    lost: str = "nothing"


class Stop(Exception):
    """What a user's function raises."""


class Calls:
    """An augmentation that does something at its n-th call."""

    def __init__(self, n=-1, action=None):
        self.n, self.action = n, action

    def __getstate__(self):
        # The counter is no part of the parameter: a checkpoint accepts any.
        return {}

    def __call__(self, batch):
        self.n -= 1
        if self.n == 0:
            self.action()
        return batch


def images(n=300):
    return load_digits().images[:n].astype(np.uint8)


def raise_stop():
    raise Stop


def digest(model, X):
    """Return what two fits have in common only if they are the same, bit for bit."""
    return joblib.hash([model.labels_, model.transform(X), model.predict(X)])


def fit_digest(X, every, **params):
    """Fit, with a checkpoint every so many seconds, and return the digest."""
    _checkpoints.SECONDS = every
    model = DeepClusterEstimator(**{**QUICK, **params})
    return digest(model.fit(X), X)


# Processes.


def _child(pipe, function, args, kwargs):
    warnings.simplefilter("ignore")
    multiprocessing.set_start_method("fork", force=True)  # as in any other process
    try:
        pipe.send(function(*args, **kwargs))
    except BaseException:
        pipe.send(traceback.format_exc())


class Job:
    """A function that runs in a process of its own."""

    def __init__(self, function, *args, **kwargs):
        self.pipe, other = CONTEXT.Pipe()
        arguments = (other, function, args, kwargs)
        self.process = CONTEXT.Process(target=_child, args=arguments)
        self.process.start()
        other.close()

    def result(self):
        """Return what the function returned, or the text of what it raised."""
        try:
            found = self.pipe.recv()
        except EOFError:
            found = None
        self.process.join()
        return found if found is not None else f"exit code {self.process.exitcode}"


def timed(function, *args, **kwargs):
    Job(images).result()  # so that the server which forks processes is there
    start = time.perf_counter()
    return Job(function, *args, **kwargs).result(), time.perf_counter() - start


# Faults. Each is a function that returns a row.


def killed(n, folder, X=None, every=0.05, reach=0.6, **params):
    """SIGKILL at random moments; the next process goes on, and is killed in turn.

    Moments are up to `reach` of the time that a whole fit takes.
    """
    X = images() if X is None else X
    expected, seconds = timed(fit_digest, X, every, **params)
    rng, kills, n_inside, ends = np.random.default_rng(0), 0, 0, []
    going = True
    while going:
        place = folder / f"killed_{len(ends)}"
        job = Job(fit_digest, X, every, checkpoint_dir=place, **params)
        if kills < n:
            job.process.join(rng.uniform(0.05, reach) * seconds)
            if job.process.is_alive():
                job.process.kill()
                job.process.join()
                kills += 1
                n_inside += any(place.glob("round_*_*")) if place.exists() else 0
                continue
        ends.append(job.result() == expected and not any(place.iterdir()))
        going = kills < n
    name = f"SIGKILL ({n_inside} inside a round, {len(ends)} fits of {len(X)} images)"
    return Row(name, n, n if all(ends) else 0)


def _interrupted_fit(folder, pictures, **params):
    os.setpgid(0, 0)  # Ctrl-C reaches a whole group of processes
    # Shells have what they start in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _checkpoints.SECONDS = 0.0
    params = {**QUICK, "n_jobs": 2, "cache": None, "checkpoint_dir": folder, **params}
    model = DeepClusterEstimator(**params)
    try:
        model.fit(pictures)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        before = [name for name in vars(model) if name.endswith("_")]
        with contextlib.suppress(ValueError):
            return before, model.recover(pictures).n_iter_
        return before, 0
    return [], -1


def interrupted(n, folder, **params):
    """Ctrl-C: KeyboardInterrupt, nothing half-fitted; the fit goes on, or is kept."""
    pictures = _pictures(folder / "pictures")
    params = {**QUICK, "n_jobs": 2, **params}
    expected, seconds = timed(fit_digest, pictures, 1e9, **params)
    rng, recovered, rounds = np.random.default_rng(0), 0, []
    for number in range(n):
        place, n_rounds = folder / f"interrupted_{number}", -1
        moment = rng.uniform(0, 0.5) * seconds
        while n_rounds < 0:  # it had ended before
            job = Job(_interrupted_fit, place, pictures, **params)
            while not (job.pipe.poll() or any(place.glob("round_*"))):
                time.sleep(0.01)
            time.sleep(moment)
            # Python loses it in the middle of a fork: then it is pressed again.
            while not job.pipe.poll():
                with contextlib.suppress(ProcessLookupError):  # it ends just now
                    os.killpg(job.process.pid, signal.SIGINT)
                job.pipe.poll(0.5)
            left, n_rounds = job.result()
            moment /= 2
        rounds.append(n_rounds)
        again = Job(fit_digest, pictures, 1e9, checkpoint_dir=place, **params).result()
        recovered += not left and again == expected
    kept = ", ".join(map(str, rounds))
    return Row(f"Ctrl-C (recover gave rounds: {kept})", n, recovered)


def _on_a_small_disk(folder, X):
    """Fill the disk in the middle of a fit that writes checkpoints to it."""
    kind = _mount_small(folder)
    _checkpoints.SECONDS = 1e9
    expected = fit_digest(X, 1e9, augment=Calls())
    place, filler = folder / "fit", folder / "filler"

    def fill():
        if kind == "tmpfs":
            with contextlib.suppress(OSError), open(filler, "wb", 0) as file:
                while True:
                    file.write(b"0" * 1000)
        else:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    def free():
        filler.unlink(missing_ok=True)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    batches = 3 * 5  # of 300 images, in a round
    params = {**QUICK, "checkpoint_dir": place}
    # It is filled in the second round, and the fit goes on to its end.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = DeepClusterEstimator(**params, augment=Calls(batches + 3, fill))
        goes_on = digest(model.fit(X), X) == expected
    free()
    warned = any("No checkpoint" in str(w.message) for w in told)

    # The same, but the fit dies in the last round: the old checkpoint is used.
    class Both(Calls):
        def __call__(self, batch):
            if self.n == batches * 2:
                fill()
            return super().__call__(batch)

    both = Both(batches * 3 + 2, raise_stop)
    with contextlib.suppress(Stop):
        DeepClusterEstimator(**params, augment=both).fit(X)
    free()
    kept = [path.stem for path in place.glob("round_*")]
    again = fit_digest(X, 1e9, checkpoint_dir=place, augment=Both())
    return kind, goes_on and warned, kept == ["round_000001"] and again == expected


def _mount_small(folder):
    """Mount a file system of 1.5 MB in a name space of this process, if it may."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user, private = 0x20000, 0x10000000, 1 << 18 | 1 << 14
    user = os.getuid()
    if libc.unshare(new_mounts | (new_user if user else 0)) == 0:
        with contextlib.suppress(OSError):
            if user:
                Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            libc.mount(None, b"/", None, private, None)
            place = os.fsencode(folder)
            if libc.mount(b"tmpfs", place, b"tmpfs", 0, b"size=6m") == 0:
                return "tmpfs"
    return "file size limit"


def disk_full(n, folder):
    """A disk that fills up: the fit goes on, and the last checkpoint stays valid."""
    recovered, kinds = 0, set()
    for number in range(n):
        place = folder / f"disk_{number}"
        place.mkdir()
        found = Job(_on_a_small_disk, place, images()).result()
        if isinstance(found, str):
            return Row("disk full", n, recovered, found)
        kind, *came_through = found
        kinds.add(kind)
        recovered += all(came_through)
    return Row(f"disk full ({', '.join(sorted(kinds))})", n, recovered)


def _damaged_fit(folder, X, seed):
    """Stop a fit, damage its last checkpoint, and go on."""
    rng = np.random.default_rng(seed)
    expected = fit_digest(X, 1e9, augment=Calls())
    _checkpoints.SECONDS = 0.0
    params = {**QUICK, "checkpoint_dir": folder}
    stopping = Calls(int(rng.integers(20, 55)), raise_stop)
    with contextlib.suppress(Stop):
        DeepClusterEstimator(**params, augment=stopping).fit(X)
    path = max(folder.glob("round_*"))
    content = bytearray(path.read_bytes())
    place = int(rng.integers(len(content)))
    if seed % 2:
        path.write_bytes(content[:place])
    else:
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = DeepClusterEstimator(**params, augment=Calls()).fit(X)
    warned = any("Used instead" in str(w.message) for w in told)
    return warned and digest(model, X) == expected


def damaged(n, folder):
    """The last checkpoint cut short, or one bit flipped: the one before is used."""
    jobs = [Job(_damaged_fit, folder / f"bad_{i}", images(), i) for i in range(n)]
    return Row("checkpoint damaged", n, sum(job.result() is True for job in jobs))


def _pictures(folder, n=200):
    if not folder.exists():
        folder.mkdir(parents=True)
        for row, values in enumerate(images(n)):
            Image.fromarray(values * 15).save(folder / f"{row:04d}.png")
    return folder


def _children():
    task = f"/proc/self/task/{os.getpid()}/children"
    return list(map(int, Path(task).read_text().split()))


def _fit_losing_decoders(pictures, n_kills, seed):
    """Kill a process that decodes, several times in a fit."""
    rng, kills = np.random.default_rng(seed), []

    def kill():
        while len(kills) < n_kills:
            time.sleep(rng.uniform(0.3, 0.8))
            decoders = _children()
            if decoders:
                pid = int(rng.choice(decoders))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills.append(pid)

    threading.Thread(target=kill, daemon=True).start()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = fit_digest(pictures, 1e9, n_jobs=2, cache=None)
    return found, sum("decodes pictures was killed" in str(w.message) for w in told)


def decoder_killed(n, folder, n_kills=2):
    """SIGKILL of a data-loader's worker: another takes its place."""
    pictures = _pictures(folder / "pictures")
    expected = Job(fit_digest, pictures, 1e9, n_jobs=2, cache=None).result()
    recovered, noticed = 0, 0
    for seed in range(n):
        found = Job(_fit_losing_decoders, pictures, n_kills, seed).result()
        if isinstance(found, str):
            return Row("data-loader worker killed", n, recovered, found)
        recovered += found[0] == expected
        noticed += found[1]
    return Row(f"data-loader worker killed ({noticed} restarts)", n, recovered)


class Wide(nn.Module):
    """A network of many features."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 100_000)

    def forward(self, x):
        return self.layer(x.mean(dim=(2, 3)))


class Many(Dataset):
    """Many pictures, all alike."""

    def __len__(self):
        return 200_000

    def __getitem__(self, row):
        return np.zeros((64, 64, 3), np.uint8)


def colors():
    return np.random.default_rng(0).integers(0, 255, (1500, 3, 32, 32), dtype=np.uint8)


# X and parameters that need memory, the MiB that are left, and what is to be lowered.
SHORTAGES = {
    "training": (colors, {"batch_size": 1500}, 600, "batch_size"),
    "calibration": (colors, {"batch_size": 1500}, 500, "batch_size"),
    "features": (colors, {"backbone": Wide()}, 500, "features_dir"),
    "search": (colors, {}, 100, "n_jobs"),
    "pictures": (Many, {"cache_bytes": 2**33}, 500, "cache_bytes"),
}


def _fit_without_memory(source, params, left):
    """Fit under a limit of the address space, then without it."""
    X, params = source(), {**QUICK, "max_iter": 1, "epochs_per_iter": 1, **params}
    DeepClusterEstimator(**{**QUICK, "max_iter": 1}).fit(images(100))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (size + left * MIB, hard))
    model = DeepClusterEstimator(**params)
    try:
        model.fit(X)
    except MemoryError as error:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        unfitted = not [name for name in vars(model) if name.endswith("_")]
        again = DeepClusterEstimator(**{**QUICK, "max_iter": 1}).fit(images(100))
        return unfitted, str(error), len(again.labels_)
    return "no lack of memory"


def out_of_memory(folder):
    """A limit of memory: MemoryError names the parameter; the process lives on."""
    recovered, lost = 0, []
    for name, (source, params, left, expected) in SHORTAGES.items():
        found = Job(_fit_without_memory, source, params, left).result()
        if isinstance(found, str):
            lost.append(f"{name}: {found.strip().splitlines()[-1]}")
            continue
        unfitted, message, n = found
        sized = re.search(r"\d [kMG]iB|\d+ bytes", message)
        came_through = unfitted and n == 100 and sized and re.search(expected, message)
        recovered += bool(came_through)
        if not came_through:
            lost.append(f"{name}: {message}")
    words = "; ".join(lost) or "nothing"
    return Row("memory limit (RLIMIT_AS)", len(SHORTAGES), recovered, words)


class Poison(nn.Module):
    """A network whose weights become NaN after so many batches of training."""

    def __init__(self, n_batches):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
        self.n_left = n_batches

    def extra_repr(self):
        return ""

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.n_left -= 1
            if self.n_left == 0:
                self.layers[1].weight.data[0, 0] = torch.nan
        return self.layers(x)


def _poisoned_fit(folder, X, n_batches):
    _checkpoints.SECONDS = 0.0
    params = {**QUICK, "checkpoint_dir": folder}
    model = DeepClusterEstimator(**params, backbone=Poison(n_batches))
    try:
        model.fit(X)
    except ValueError as error:
        n_rounds = int(re.search(r"is nan in round (\d)", str(error))[1])
        finite = np.isfinite(model.recover(X).transform(X)).all()
        return bool(finite) and model.n_iter_ == n_rounds - 1
    return False


def poisoned(n, folder):
    """NaN in the weights: the round is named, the one before it can be recovered."""
    moments = np.random.default_rng(0).integers(17, 60, n).tolist()
    jobs = [
        Job(_poisoned_fit, folder / f"nan_{i}", images(), moment)
        for i, moment in enumerate(moments)
    ]
    return Row("NaN in the weights", n, sum(job.result() is True for job in jobs))


def _raising_fit(folder, X, n_calls):
    expected = fit_digest(X, 1e9, augment=Calls())
    params = {**QUICK, "checkpoint_dir": folder, "augment": Calls(n_calls, raise_stop)}
    model = DeepClusterEstimator(**params)
    try:
        model.fit(X)
    except Stop:
        unfitted = not [name for name in vars(model) if name.endswith("_")]
        again = fit_digest(X, 1e9, checkpoint_dir=folder, augment=Calls())
        return unfitted and again == expected
    return False


def raising(n, folder):
    """A user's function that raises: its own error comes out, and the fit goes on."""
    moments = np.random.default_rng(0).integers(1, 60, n).tolist()
    jobs = [
        Job(_raising_fit, folder / f"raising_{i}", images(), moment)
        for i, moment in enumerate(moments)
    ]
    return Row("callback raises", n, sum(job.result() is True for job in jobs))


def _usage(folder):
    gc.collect()
    status = Path("/proc/self/status").read_text()
    kib, threads = (
        int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads")
    )
    counts = [len(list(Path(p).iterdir())) for p in ("/proc/self/fd", folder)]
    return np.array([kib / 1024, threads, *counts, len(_children())])


def _many_fits(n, folder):
    tempfile.tempdir = str(folder)
    digits, pictures = images(60), _pictures(folder.parent / "pictures", 60)
    params = {**QUICK, "max_iter": 1, "epochs_per_iter": 1}
    forms = [
        (digits, {}),
        (digits.reshape(60, -1).astype(float), {}),
        (pictures, {"n_jobs": 2, "cache": None, "image_size": 8}),
        (digits, {"checkpoint_dir": folder / "fit", "features_dir": folder}),
    ]
    found = []
    for number in range(n):
        X, more = forms[number % len(forms)]
        DeepClusterEstimator(**{**params, **more}).fit(X).predict(X)
        if number >= n // 4:
            found.append(_usage(folder))
    half = len(found) // 2
    early, late = (np.median(part, axis=0) for part in (found[:half], found[half:]))
    return (late - early).tolist()


def soak(n, folder):
    """Many fits in one process."""
    place = folder / "soak"
    place.mkdir()
    growth = Job(_many_fits, n, place).result()
    if isinstance(growth, str):
        return Row("soak", n, 0, growth.strip().splitlines()[-1])
    names = ("MiB", "threads", "files open", "temporary files", "processes")
    words = ", ".join(f"{g:+.1f} {name}" for g, name in zip(growth, names, strict=True))
    steady = growth[0] < SOAK_MIB and max(growth[1:]) <= 0
    return Row(f"soak, second half to first: {words}", n, n if steady else 0)


SOAK_MIB = 5.0  # what allocators keep, in a hundred fits


def _seconds(X, **params):
    """Return the seconds of a fit, and of those what checkpoints took."""
    spent, Checkpoints = [], _checkpoints.Checkpoints

    def measured(method):
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - start)

        return call

    for name in ("__init__", "read", "write", "clear"):
        setattr(Checkpoints, name, measured(getattr(Checkpoints, name)))
    start = time.perf_counter()
    DeepClusterEstimator(**params).fit(X)
    return time.perf_counter() - start, sum(spent), len(spent) - 3


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fashion", action="store_true")
    parser.add_argument("--only", nargs="*", help="rows whose function has this name")
    parser.add_argument("--json", default="faults.json", help="file to write")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    faults = [
        lambda: killed(20, folder),
        lambda: interrupted(5, folder),
        lambda: disk_full(3, folder),
        lambda: damaged(10, folder),
        lambda: decoder_killed(3, folder),
        lambda: out_of_memory(folder),
        lambda: poisoned(10, folder),
        lambda: raising(10, folder),
        lambda: soak(200, folder),
    ]
    names = [re.search(r"_?(\w+)", f.__code__.co_names[0])[1] for f in faults]
    rows, told = [], {}
    print(f"{'fault':78s}{'tried':>7s}{'recovered':>11s}  lost")
    for name, fault in zip(names, faults, strict=True):
        if not arguments.only or name in arguments.only:
            show(fault(), rows)
    if arguments.fashion:
        X = load_fashion_mnist("train")[0][:5000]
        params = {**QUICK, "n_clusters": 10, "max_iter": 6, "epochs_per_iter": "auto"}
        params["n_jobs"] = None
        show(killed(5, folder, X, every=5.0, reach=0.3, **params), rows)
        params["checkpoint_dir"] = folder / "cost"
        whole, spent, n_files = Job(_seconds, X, **params).result()
        told = {"seconds": whole, "seconds_checkpoints": spent, "files": n_files}
        print(f"checkpoints: {spent / whole:.2%} of {whole:.0f} s, for {n_files} files")
    shutil.rmtree(folder)
    content = {
        "rows": [asdict(row) for row in rows],
        **told,
        "machine": platform.platform(),
        "torch": torch.__version__,
    }
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


def show(row, rows):
    rows.append(row)
    print(f"{row.fault:78s}{row.tried:7d}{row.recovered:11d}  {row.lost}", flush=True)


if __name__ == "__main__":
    main()
