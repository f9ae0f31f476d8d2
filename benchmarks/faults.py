"""Kill, interrupt and starve fits, and count how many fits recover.

    python benchmarks/faults.py             (every fault, on digits)
    python benchmarks/faults.py --fashion   (also a fit of 5,000 images, killed 5 times)

Each row is a fault, with the number of trials, the number of fits that recovered and
the loss. A fit has recovered if its result, or the result of the resumed fit, is bit
for bit the result of an undisturbed fit. Exceptions are explained at each fault. The
fits run in processes of their own, which are really killed, interrupted and starved.

"soak" runs many fits in one process. Its loss is the growth of memory, threads, open
files and temporary files.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import joblib
import numpy as np
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit import checkpoints
from skdeepcluster.datasets import load_fashion_mnist
from skdeepcluster.io import write_embeddings

# A fork server imports torch once, so that each process starts at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["skdeepcluster", "safetensors.torch", "torch._dynamo"])
# Parameters of a fit that takes seconds.
QUICK = {
    "n_clusters": 4,
    "max_iter": 4,
    "epochs_per_iter": 3,
    "n_jobs": 1,
    "random_state": 0,
}
# Number of digits that most fits cluster.
N_IMAGES = 300
# Number of batches in one round of a quick fit, with three epochs of five batches.
BATCHES_PER_ROUND = 15
# Seconds between two checkpoints inside a round.
NEVER = 1e9
ALWAYS = 0.0
MIB = 2**20
# Memory that allocators keep after a hundred fits.
MAX_GROWTH_MIB = 5.0


@dataclass
class Result:
    """One row of the table."""

    fault: str
    n_trials: int
    n_recovered: int
    loss: str = "nothing"


class UserError(Exception):
    """An exception that a user's function raises."""


def raise_user_error():
    raise UserError


class ScheduledAugment:
    """An augmentation that changes nothing, but calls functions at certain batches.

    Parameters
    ----------
    actions : dict of int to callable, default=None
        Functions by the number of the call, counted from 1.
    """

    def __init__(self, actions=None):
        self.actions = actions or {}
        self.n_calls = 0

    def __getstate__(self):
        # The counter is no part of the parameter: a checkpoint accepts any.
        return {}

    def __call__(self, batch):
        self.n_calls += 1
        if self.n_calls in self.actions:
            self.actions[self.n_calls]()
        return batch


def load_images(n=N_IMAGES):
    """Return the first n digits."""
    return load_digits().images[:n].astype(np.uint8)


def write_images(folder, n=200):
    """Write the first n digits as PNG files, unless the folder exists."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for row, image in enumerate(load_images(n)):
            Image.fromarray(image * 15).save(folder / f"{row:04d}.png")
    return folder


def fitted_attributes(model):
    """Return the names of the fitted attributes that a model has."""
    return [name for name in vars(model) if name.endswith("_")]


def hash_result(model, X):
    """Return a hash that is equal for two models if their results are the same bits."""
    return joblib.hash([model.labels_, model.transform(X), model.predict(X)])


def fit_and_hash(X, checkpoint_seconds, **params):
    """Fit, with a checkpoint every so many seconds, and return the hash."""
    checkpoints.SECONDS_BETWEEN_CHECKPOINTS = checkpoint_seconds
    return hash_result(DeepClusterEstimator(**QUICK | params).fit(X), X)


def _run_in_child(pipe, function, args, kwargs):
    warnings.simplefilter("ignore")
    # Workers of this process are forked, as in a process without a fork server.
    multiprocessing.set_start_method("fork", force=True)
    try:
        pipe.send(function(*args, **kwargs))
    except BaseException:
        pipe.send(traceback.format_exc())


class Job:
    """A function that runs in a process of its own."""

    def __init__(self, function, *args, **kwargs):
        self.pipe, child_pipe = CONTEXT.Pipe()
        self.process = CONTEXT.Process(
            target=_run_in_child, args=(child_pipe, function, args, kwargs)
        )
        self.process.start()
        # With the other end closed here, the death of the child ends `recv`.
        child_pipe.close()

    def result(self):
        """Return the result of the function, or the text of its exception."""
        try:
            result = self.pipe.recv()
        except EOFError:
            result = None
        self.process.join()
        if result is None:
            return f"exit code {self.process.exitcode}"
        return result


def run_timed(function, *args, **kwargs):
    """Run a function in a process; return its result and its seconds."""
    # The first process also starts the fork server, which should not count.
    Job(load_images).result()
    start = time.perf_counter()
    result = Job(function, *args, **kwargs).result()
    return result, time.perf_counter() - start


# Each function below causes one fault n times, and returns a result.


def kill_fits(
    n, folder, X=None, checkpoint_seconds=0.05, max_share=0.6, **params
) -> Result:
    """Kill fits by SIGKILL at random moments; the next process resumes the fit.

    Moments are at most `max_share` of the time of an undisturbed fit.
    """
    X = load_images() if X is None else X
    expected, seconds = run_timed(fit_and_hash, X, checkpoint_seconds, **params)
    # The moments are the same in each run of the benchmark.
    rng = np.random.default_rng(0)
    n_kills = n_kills_in_round = 0
    is_same = []
    while True:
        checkpoint_dir = folder / f"killed_{len(is_same)}"
        job = Job(
            fit_and_hash,
            X,
            checkpoint_seconds,
            checkpoint_dir=checkpoint_dir,
            **params,
        )
        if n_kills < n:
            job.process.join(rng.uniform(0.05, max_share) * seconds)
            if job.process.is_alive():
                job.process.kill()
                job.process.join()
                n_kills += 1
                # The name of a checkpoint inside a round has two numbers.
                n_kills_in_round += any(checkpoint_dir.glob("*/round_*_*"))
                continue
        # A complete fit leaves no checkpoints behind.
        is_same.append(job.result() == expected and not any(checkpoint_dir.iterdir()))
        if n_kills >= n:
            break
    name = (
        f"SIGKILL ({n_kills_in_round} inside a round, {len(is_same)} fits of {len(X)} "
        "images)"
    )
    return Result(name, n, n if all(is_same) else 0)


def _fit_until_interrupt(checkpoint_dir, X, **params):
    """Fit until Ctrl-C.

    Returns
    -------
    attributes : list of str
        Fitted attributes after Ctrl-C.
    n_rounds : int or None
        Number of rounds that `recover` returned. None if the fit ended before Ctrl-C.
    """
    # Ctrl-C reaches a whole process group, so the process needs one of its own.
    os.setpgid(0, 0)
    # Shells let processes in the background ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    checkpoints.SECONDS_BETWEEN_CHECKPOINTS = ALWAYS
    model = DeepClusterEstimator(**params, checkpoint_dir=checkpoint_dir)
    try:
        model.fit(X)
    except KeyboardInterrupt:
        # The signal is repeated, and must not interrupt `recover`.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        attributes = fitted_attributes(model)
        n_rounds = 0
        # Before the end of the first round there is nothing to recover.
        with contextlib.suppress(ValueError):
            n_rounds = model.recover(X).n_iter_
        return attributes, n_rounds
    return [], None


def _interrupt(job, checkpoint_dir, seconds):
    """Send Ctrl-C some seconds after the first checkpoint; return the job's result."""
    while not (job.pipe.poll() or any(checkpoint_dir.glob("*/round_*"))):
        time.sleep(0.01)
    time.sleep(seconds)
    # Python loses a signal in the middle of a fork, so the signal is repeated.
    while not job.pipe.poll():
        # The fit may end at this very moment.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGINT)
        job.pipe.poll(0.5)
    return job.result()


def interrupt_fits(n, folder, **params) -> Result:
    """Press Ctrl-C: nothing is fitted, `recover` works, and the fit resumes."""
    X = write_images(folder / "images")
    params = QUICK | {"n_jobs": 2} | params
    expected, fit_seconds = run_timed(fit_and_hash, X, NEVER, **params)
    rng = np.random.default_rng(0)
    n_recovered, recovered_rounds = 0, []
    for trial in range(n):
        checkpoint_dir = folder / f"interrupted_{trial}"
        seconds = rng.uniform(0, 0.5) * fit_seconds
        n_rounds = None
        # A fit may end before the signal. Then the next signal comes earlier.
        while n_rounds is None:
            job = Job(_fit_until_interrupt, checkpoint_dir, X, **params)
            result = _interrupt(job, checkpoint_dir, seconds)
            if isinstance(result, str):
                return Result("Ctrl-C", n, n_recovered, loss=last_line(result))
            attributes, n_rounds = result
            seconds /= 2
        recovered_rounds.append(n_rounds)
        resumed = Job(
            fit_and_hash, X, NEVER, checkpoint_dir=checkpoint_dir, **params
        ).result()
        n_recovered += not attributes and resumed == expected
    rounds = ", ".join(map(str, recovered_rounds))
    return Result(f"Ctrl-C (recover returned rounds: {rounds})", n, n_recovered)


# Calls that are interrupted, by their name.
CALLS = {
    "fit": lambda model, X, path: clone(model).fit(X),
    "transform": lambda model, X, path: model.transform(X),
    "predict": lambda model, X, path: model.predict(X),
    "write_embeddings": write_embeddings,
}


def _call_with_interrupt(call, model, X, path, seconds):
    """Press Ctrl-C some seconds after the start of a call, and return the error."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        call(model, X, path)
        timer.cancel()
        timer.join()
    except KeyboardInterrupt as error:
        timer.join()
        # The traceback is alive while the resources are counted.
        return error
    return None


def _interrupt_calls(n, folder):
    """Return the clean ends of n interrupted calls each, and what the others left."""
    # A shell in the background lets its programs ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    temporary = folder / "temporary"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    X = write_images(folder / "images")
    path = folder / "embeddings.npy"
    model = DeepClusterEstimator(**QUICK | {"n_jobs": 2, "max_iter": 2}).fit(X)
    embedding = model.transform(X)
    rng = np.random.default_rng(0)
    n_clean, n_interrupts, losses = 0, 0, []
    for name, call in CALLS.items():
        start = time.perf_counter()
        call(model, X, path)
        moments = rng.uniform(0, time.perf_counter() - start, n)
        path.unlink(missing_ok=True)
        # The first of them is the memory, which may grow by the traceback.
        before = _measure_resources(temporary)[1:]
        for seconds in moments:
            error = _call_with_interrupt(call, model, X, path, seconds)
            n_interrupts += error is not None
            left = _measure_resources(temporary)[1:] - before
            del error
            is_complete = not path.exists() or np.array_equal(np.load(path), embedding)
            path.unlink(missing_ok=True)
            # An interrupted call changes nothing, and the next one works.
            is_same = np.array_equal(model.transform(X), embedding)
            if is_complete and is_same and (left <= 0).all():
                n_clean += 1
            else:
                amounts = zip(left.tolist(), RESOURCES[1:], strict=True)
                losses.append(
                    f"{name}: " + ", ".join(f"{k:+.0f} {r}" for k, r in amounts)
                )
        call(model, X, path)
        if path.exists() and not np.array_equal(np.load(path), embedding):
            losses.append(f"{name}: the next call returns other embeddings")
        path.unlink(missing_ok=True)
    return n_clean, n_interrupts, losses


def interrupt_calls(n, folder) -> Result:
    """Press Ctrl-C at random moments of several calls: nothing is left behind."""
    result = Job(_interrupt_calls, n, folder).result()
    n_trials = n * len(CALLS)
    if isinstance(result, str):
        return Result("Ctrl-C in calls", n_trials, 0, loss=last_line(result))
    n_clean, n_interrupts, losses = result
    return Result(
        f"Ctrl-C in {', '.join(CALLS)} ({n_interrupts} in time)",
        n_trials,
        n_clean,
        "; ".join(losses[:3]) or "nothing",
    )


def last_line(text):
    """Return the last line of a traceback, which is the exception."""
    return text.strip().splitlines()[-1]


def _mount_small_disk(folder):
    """Mount a file system of 6 MB in a name space of this process, if permitted.

    Returns
    -------
    is_mounted : bool
    """
    # Constants of the Linux headers sched.h and sys/mount.h.
    clone_newns, clone_newuser = 0x20000, 0x10000000
    ms_private, ms_rec = 1 << 18, 1 << 14
    # In a user name space any user may mount.
    libc = ctypes.CDLL(None, use_errno=True)
    user = os.getuid()
    if libc.unshare(clone_newns | (clone_newuser if user else 0)) != 0:
        return False
    with contextlib.suppress(OSError):
        if user:
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        # A private mount is invisible to the rest of the machine.
        libc.mount(None, b"/", None, ms_private | ms_rec, None)
        target = os.fsencode(folder)
        return libc.mount(b"tmpfs", target, b"tmpfs", 0, b"size=6m") == 0
    return False


class SmallDisk:
    """A disk that can be filled: a small file system, or a limit of file sizes."""

    def __init__(self, folder):
        self.is_mounted = _mount_small_disk(folder)
        self.filler = folder / "filler"

    @property
    def kind(self):
        """Kind of disk, for the table."""
        return "tmpfs" if self.is_mounted else "file size limit"

    def fill(self):
        """Let each write fail from now on."""
        if self.is_mounted:
            with contextlib.suppress(OSError), open(self.filler, "wb", 0) as file:
                while True:
                    file.write(b"0" * 1000)
        else:
            # Without the handler the signal would end the process.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard_limit))

    def free(self):
        """Let writes succeed again."""
        self.filler.unlink(missing_ok=True)
        hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard_limit, hard_limit))


def _fit_on_small_disk(folder, X):
    """Fill the disk in the second round of two fits.

    Returns
    -------
    kind : str
        Kind of disk.
    continues : bool
        Whether the first fit warns and runs to its end.
    resumes : bool
        Whether the second fit, which dies later, resumes from the old checkpoint.
    """
    disk = SmallDisk(folder)
    checkpoint_dir = folder / "fit"
    expected = fit_and_hash(X, NEVER, augment=ScheduledAugment())
    params = QUICK | {"checkpoint_dir": checkpoint_dir}
    second_round, last_round = BATCHES_PER_ROUND + 3, 3 * BATCHES_PER_ROUND + 2

    # The first fit has to continue without its checkpoint.
    augment = ScheduledAugment({second_round: disk.fill})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = DeepClusterEstimator(**params, augment=augment).fit(X)
    has_warned = any("No checkpoint" in str(w.message) for w in caught)
    continues = has_warned and hash_result(model, X) == expected
    disk.free()

    # The second fit has to resume from the checkpoint of the first round.
    actions = {second_round: disk.fill, last_round: raise_user_error}
    with contextlib.suppress(UserError):
        DeepClusterEstimator(**params, augment=ScheduledAugment(actions)).fit(X)
    disk.free()
    names = sorted(path.stem for path in checkpoint_dir.glob("*/round_*"))
    resumed = fit_and_hash(
        X, NEVER, checkpoint_dir=checkpoint_dir, augment=ScheduledAugment()
    )
    resumes = names[-1:] == ["round_000001"] and resumed == expected
    return disk.kind, continues, resumes


def fill_disk(n, folder) -> Result:
    """Fill the disk: the fit continues, and the last checkpoint stays valid."""
    n_recovered, kinds = 0, set()
    for trial in range(n):
        trial_folder = folder / f"disk_{trial}"
        trial_folder.mkdir()
        result = Job(_fit_on_small_disk, trial_folder, load_images()).result()
        if isinstance(result, str):
            return Result("disk full", n, n_recovered, loss=last_line(result))
        kind, continues, resumes = result
        kinds.add(kind)
        n_recovered += continues and resumes
    return Result(f"disk full ({', '.join(sorted(kinds))})", n, n_recovered)


def _fit_with_damaged_checkpoint(checkpoint_dir, X, seed):
    """Stop a fit, damage its last checkpoint, and resume from the one before."""
    rng = np.random.default_rng(seed)
    expected = fit_and_hash(X, NEVER, augment=ScheduledAugment())
    checkpoints.SECONDS_BETWEEN_CHECKPOINTS = ALWAYS
    params = QUICK | {"checkpoint_dir": checkpoint_dir}
    augment = ScheduledAugment({int(rng.integers(20, 55)): raise_user_error})
    with contextlib.suppress(UserError):
        DeepClusterEstimator(**params, augment=augment).fit(X)
    path = max(checkpoint_dir.glob("*/round_*"))
    content = bytearray(path.read_bytes())
    position = int(rng.integers(len(content)))
    # Half of the trials truncate the file, the remaining ones flip a bit.
    if seed % 2:
        path.write_bytes(content[:position])
    else:
        content[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = DeepClusterEstimator(**params, augment=ScheduledAugment()).fit(X)
    messages = [str(w.message) for w in caught]
    has_warned = any(
        path.name in message and "instead" in message for message in messages
    )
    return has_warned and hash_result(model, X) == expected


def damage_checkpoints(n, folder) -> Result:
    """Truncate the last checkpoint or flip a bit: the one before is used."""
    jobs = [
        Job(_fit_with_damaged_checkpoint, folder / f"damaged_{i}", load_images(), i)
        for i in range(n)
    ]
    n_recovered = sum(job.result() is True for job in jobs)
    return Result("checkpoint damaged", n, n_recovered)


class SlowDataset(Dataset):
    """Digits that take two milliseconds each, so that workers live for seconds."""

    def __init__(self, n=1280):
        self.images = load_images(n)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        time.sleep(0.002)
        return self.images[row]


def child_processes():
    """Return the process ids of the children of this process."""
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return list(map(int, path.read_text().split()))


def _fit_losing_workers(n_kills, seed):
    """Fit while a thread kills workers; return the hash and the number of restarts."""
    rng = np.random.default_rng(seed)

    def kill_workers():
        n_killed = 0
        while n_killed < n_kills:
            time.sleep(rng.uniform(0.3, 0.8))
            workers = child_processes()
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(rng.choice(workers)), signal.SIGKILL)
                    n_killed += 1

    # The thread only sleeps and kills, so it does not slow down the fit.
    threading.Thread(target=kill_workers, daemon=True).start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit_and_hash(SlowDataset(), NEVER, n_jobs=2)
    return result, sum("ended early" in str(w.message) for w in caught)


def kill_workers(n, folder, n_kills=2) -> Result:
    """Kill workers that decode images: other workers take their place."""
    expected = Job(fit_and_hash, SlowDataset(), NEVER, n_jobs=2).result()
    n_recovered, n_restarts = 0, 0
    for seed in range(n):
        result = Job(_fit_losing_workers, n_kills, seed).result()
        if isinstance(result, str):
            return Result("worker killed", n, n_recovered, loss=last_line(result))
        n_recovered += result[0] == expected
        n_restarts += result[1]
    return Result(f"worker killed ({n_restarts} restarts)", n, n_recovered)


class WideNetwork(nn.Module):
    """A network with 100,000 features."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 100_000)

    def forward(self, x):
        return self.layer(x.mean(dim=(2, 3)))


class LargeDataset(Dataset):
    """Equal images that take 117 MiB, less than the budget of decoded images."""

    def __len__(self):
        return 10_000

    def __getitem__(self, row):
        return np.zeros((64, 64, 3), np.uint8)


def make_color_images():
    """Return noise in color."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (1500, 3, 32, 32), dtype=np.uint8)


@dataclass
class Shortage:
    """A fit that needs more memory than there is.

    Parameters
    ----------
    make_images : callable
        Returns X.
    params : dict
        Parameters of the estimator.
    available_mib : int
        Memory that the fit may take.
    remedy : str
        Parameter that the error has to name.
    """

    make_images: Callable
    params: dict
    available_mib: int
    remedy: str


SHORTAGES = {
    "training": Shortage(make_color_images, {"batch_size": 1500}, 600, "batch_size"),
    "calibration": Shortage(make_color_images, {"batch_size": 1500}, 500, "batch_size"),
    "features": Shortage(
        make_color_images, {"backbone": WideNetwork()}, 500, "cache_dir"
    ),
    "search": Shortage(make_color_images, {}, 100, "n_jobs"),
    "images": Shortage(LargeDataset, {}, 100, "cache_dir"),
}


def _fit_without_memory(shortage):
    """Fit under a limit of the address space, then without the limit.

    Returns
    -------
    attributes : list of str
        Fitted attributes after the error.
    message : str
        The error.
    n_labels : int
        Number of labels of the second fit.
    """
    X = shortage.make_images()
    params = QUICK | {"max_iter": 1, "epochs_per_iter": 1} | shortage.params
    small_model = DeepClusterEstimator(**QUICK | {"max_iter": 1})
    small_images = load_images(100)
    # The first fit of a process allocates memory that it keeps.
    small_model.fit(small_images)
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = n_pages * resource.getpagesize()
    hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = size + shortage.available_mib * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard_limit))
    model = DeepClusterEstimator(**params)
    try:
        model.fit(X)
    except MemoryError as error:
        # Without the limit, the same process has to be able to fit again.
        resource.setrlimit(resource.RLIMIT_AS, (hard_limit, hard_limit))
        n_labels = len(small_model.fit(small_images).labels_)
        return fitted_attributes(model), str(error), n_labels
    return "There was enough memory."


def exhaust_memory(folder, names=tuple(SHORTAGES)) -> Result:
    """Limit the memory: MemoryError names the parameter, and the process survives."""
    n_recovered, losses = 0, []
    for name in names:
        shortage = SHORTAGES[name]
        result = Job(_fit_without_memory, shortage).result()
        if isinstance(result, str):
            losses.append(f"{name}: {last_line(result)}")
            continue
        attributes, message, n_labels = result
        has_size = re.search(r"\d [kMG]iB|\d+ bytes", message)
        has_remedy = shortage.remedy in message
        if not attributes and n_labels == 100 and has_size and has_remedy:
            n_recovered += 1
        else:
            losses.append(f"{name}: {message}")
    loss = "; ".join(losses) or "nothing"
    return Result("memory limit (RLIMIT_AS)", len(names), n_recovered, loss)


class PoisonedNetwork(nn.Module):
    """A network with a weight that becomes NaN after some batches of training."""

    def __init__(self, n_batches):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
        self.n_remaining = n_batches

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.n_remaining -= 1
            if self.n_remaining == 0:
                self.layers[1].weight.data[0, 0] = torch.nan
        return self.layers(x)


def _fit_poisoned(checkpoint_dir, X, n_batches):
    """Return whether the round before the NaN can be recovered."""
    checkpoints.SECONDS_BETWEEN_CHECKPOINTS = ALWAYS
    model = DeepClusterEstimator(
        **QUICK, checkpoint_dir=checkpoint_dir, backbone=PoisonedNetwork(n_batches)
    )
    try:
        model.fit(X)
    except ValueError as error:
        round_with_nan = int(re.search(r"is nan in round (\d)", str(error))[1])
        is_finite = np.isfinite(model.recover(X).transform(X)).all()
        return bool(is_finite) and model.n_iter_ == round_with_nan - 1
    return False


def poison_weights(n, folder) -> Result:
    """Set a weight to NaN: the error names the round; the round before is recovered."""
    batches = np.random.default_rng(0).integers(17, 60, n).tolist()
    jobs = [
        Job(_fit_poisoned, folder / f"nan_{i}", load_images(), n_batches)
        for i, n_batches in enumerate(batches)
    ]
    n_recovered = sum(job.result() is True for job in jobs)
    return Result("NaN in the weights", n, n_recovered)


def _fit_with_error(checkpoint_dir, X, n_calls):
    """Return whether a user's error is raised unchanged, and the fit resumes."""
    expected = fit_and_hash(X, NEVER, augment=ScheduledAugment())
    augment = ScheduledAugment({n_calls: raise_user_error})
    model = DeepClusterEstimator(
        **QUICK, checkpoint_dir=checkpoint_dir, augment=augment
    )
    try:
        model.fit(X)
    except UserError:
        attributes = fitted_attributes(model)
        resumed = fit_and_hash(
            X, NEVER, checkpoint_dir=checkpoint_dir, augment=ScheduledAugment()
        )
        return not attributes and resumed == expected
    return False


def raise_errors(n, folder) -> Result:
    """Raise an error in a user's function: it is not changed, and the fit resumes."""
    calls = np.random.default_rng(0).integers(1, 60, n).tolist()
    jobs = [
        Job(_fit_with_error, folder / f"error_{i}", load_images(), n_calls)
        for i, n_calls in enumerate(calls)
    ]
    n_recovered = sum(job.result() is True for job in jobs)
    return Result("user's function raises", n, n_recovered)


# Resources of a process that must not grow from fit to fit.
RESOURCES = ("MiB", "threads", "open files", "temporary files", "processes")


def _measure_resources(folder):
    """Return the resources of this process, in the order of `RESOURCES`."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    kib = int(re.search(r"VmRSS:\s+(\d+)", status)[1])
    n_threads = int(re.search(r"Threads:\s+(\d+)", status)[1])
    n_open = len(list(Path("/proc/self/fd").iterdir()))
    n_temporary = len(list(folder.iterdir()))
    n_processes = len(child_processes())
    return np.array([kib / 1024, n_threads, n_open, n_temporary, n_processes])


def _fit_repeatedly(n, folder):
    """Return how the resources grow from the first half of the fits to the second."""
    tempfile.tempdir = str(folder)
    digits = load_images(60)
    files = write_images(folder.parent / "soak_images", 60)
    quick = QUICK | {"max_iter": 1, "epochs_per_iter": 1}
    settings = [
        (digits, {}),
        (digits.reshape(60, -1).astype(float), {}),
        (files, {"n_jobs": 2, "image_size": 8}),
        (digits, {"checkpoint_dir": folder / "fit", "cache_dir": folder}),
    ]
    measured = []
    for number in range(n):
        X, params = settings[number % len(settings)]
        DeepClusterEstimator(**quick | params).fit(X).predict(X)
        # Pools and caches fill during the first quarter.
        if number >= n // 4:
            measured.append(_measure_resources(folder))
    half = len(measured) // 2
    growth = np.median(measured[half:], axis=0) - np.median(measured[:half], axis=0)
    return growth.tolist()


def repeat_fits(n, folder) -> Result:
    """Fit many times in one process: no resource grows."""
    # Temporary files of the fits go to a folder of their own, to be counted.
    soak_folder = folder / "soak"
    soak_folder.mkdir()
    growth = Job(_fit_repeatedly, n, soak_folder).result()
    if isinstance(growth, str):
        return Result("soak", n, 0, loss=last_line(growth))
    changes = [
        f"{change:+.1f} {name}" for change, name in zip(growth, RESOURCES, strict=True)
    ]
    is_steady = growth[0] < MAX_GROWTH_MIB and max(growth[1:]) <= 0
    name = f"soak, second half to first: {', '.join(changes)}"
    return Result(name, n, n if is_steady else 0)


def _time_checkpoints(X, params):
    """Return the seconds of a fit, the seconds of its checkpoints, and their number."""
    seconds = []

    def timed(method):
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                seconds.append(time.perf_counter() - start)

        return call

    # These methods are all the time that a fit spends on checkpoints.
    for name in ("__init__", "read", "write", "clear"):
        method = getattr(checkpoints.Checkpoints, name)
        setattr(checkpoints.Checkpoints, name, timed(method))
    start = time.perf_counter()
    DeepClusterEstimator(**params).fit(X)
    # All calls except for one each of __init__, read and clear write a file.
    return time.perf_counter() - start, sum(seconds), len(seconds) - 3


def measure_fashion(folder):
    """Kill a fit of 5,000 images, and measure the cost of its checkpoints.

    Returns
    -------
    result : Result
    cost : dict
    """
    X = load_fashion_mnist("train")[0][:5000]
    params = QUICK | {
        "n_clusters": 10,
        "max_iter": 6,
        "epochs_per_iter": "auto",
        "n_jobs": None,
    }
    result = kill_fits(5, folder, X, checkpoint_seconds=5.0, max_share=0.3, **params)
    params["checkpoint_dir"] = folder / "cost"
    fit_seconds, checkpoint_seconds, n_files = Job(
        _time_checkpoints, X, params
    ).result()
    cost = {
        "seconds": fit_seconds,
        "seconds_checkpoints": checkpoint_seconds,
        "files": n_files,
    }
    return result, cost


# Faults by the name that --only takes, with their number of trials.
FAULTS = {
    "killed": lambda folder: kill_fits(20, folder),
    "interrupted": lambda folder: interrupt_fits(5, folder),
    "interrupted_calls": lambda folder: interrupt_calls(50, folder),
    "disk_full": lambda folder: fill_disk(3, folder),
    "damaged": lambda folder: damage_checkpoints(10, folder),
    "worker_killed": lambda folder: kill_workers(3, folder),
    "out_of_memory": exhaust_memory,
    "poisoned": lambda folder: poison_weights(10, folder),
    "raising": lambda folder: raise_errors(10, folder),
    "soak": lambda folder: repeat_fits(200, folder),
}


def print_result(result):
    """Print one line of the table."""
    print(
        f"{result.fault:78s}{result.n_trials:8d}{result.n_recovered:11d}  "
        f"{result.loss}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fashion", action="store_true", help="also fit 5,000 images, killed 5 times"
    )
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--json", default="faults.json", help="file to write")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    results, cost = [], {}
    print(f"{'fault':78s}{'trials':>8s}{'recovered':>11s}  loss")
    for name in arguments.only:
        results.append(FAULTS[name](folder))
        print_result(results[-1])
    if arguments.fashion:
        result, cost = measure_fashion(folder)
        results.append(result)
        print_result(result)
        share = cost["seconds_checkpoints"] / cost["seconds"]
        print(
            f"checkpoints take {share:.2%} of {cost['seconds']:.0f} s, for "
            f"{cost['files']} files"
        )
    shutil.rmtree(folder)
    content = {
        "rows": [asdict(result) for result in results],
        **cost,
        "machine": platform.platform(),
        "torch": torch.__version__,
    }
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
