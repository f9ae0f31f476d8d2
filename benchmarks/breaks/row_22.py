"""Ctrl-C while workers start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = """
import signal, sys
from skdeepcluster import DeepClusterEstimator
# A shell in the background lets its programs ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
model = DeepClusterEstimator(3, max_iter=2, random_state=0, n_jobs=2)
print("ready", flush=True)
try:
    model.fit(sys.argv[1])
except KeyboardInterrupt as error:
    caught = error
    # The traceback is alive, as in an interactive session.
    print("caught", flush=True)
sys.stdin.read()
"""
N_TRIALS = 6


def list_children(pid):
    """Return the processes that a process has started."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in children for child in path.read_text().split()]


def row_22(folder):
    """Interrupt fits at several moments, and count the workers that stay alive."""
    rng = np.random.default_rng(0)
    for row in range(300):
        values = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{row:03d}.png")
    for trial in range(N_TRIALS):
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        process.stdout.readline()
        # The first trials are interrupted when the first worker appears.
        while not list_children(process.pid) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.003 * trial)
        os.kill(process.pid, signal.SIGINT)
        process.stdout.readline()
        time.sleep(0.5)
        n_left = len(list_children(process.pid))
        process.kill()
        process.wait()
        if n_left:
            return f"{n_left} workers stay alive"
    return "ok"
