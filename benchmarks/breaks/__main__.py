"""Try to break the package in known ways, and print how each attempt ends.

    python benchmarks/breaks
    python benchmarks/breaks --rows 3 16 --source ../older

Each attempt is a module of this folder with a function of the same name, which returns
"ok" or, in a few words, what went wrong. It runs in a process of its own with an empty
folder. A process that still runs after a minute is killed: it hangs. A process that
dies by a signal is named as well.

`--source` is the folder of another version of the package, to compare with.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
# Seconds after which an attempt is said to hang.
TIMEOUT = 60
RUN = """
import sys, warnings
from importlib import import_module
from pathlib import Path
warnings.simplefilter("ignore")
name, folder = sys.argv[1:]
print("\\n" + str(getattr(import_module(name), name)(Path(folder))))
"""


def run_attempt(name, source):
    """Run an attempt in a process of its own, and return its outcome in words."""
    paths = [str(source), str(FOLDER), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_WAIT_POLICY": "passive",
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, name, folder],
            # Python imports modules of the present folder first.
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Workers of a process that hangs are killed with it.
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return f"hangs for {TIMEOUT} seconds"
    if process.returncode < 0:
        return f"dies by {signal.Signals(-process.returncode).name}"
    text = errors if process.returncode else output
    lines = text.strip().splitlines() or [f"exit code {process.returncode}"]
    return lines[-1]


def main():
    parser = argparse.ArgumentParser(
        prog="python benchmarks/breaks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, nargs="*", help="instead of all attempts")
    parser.add_argument(
        "--source", type=Path, default=FOLDER.parents[1], help="folder of the package"
    )
    parser.add_argument("--json", default="breaks.json", help="file to write")
    arguments = parser.parse_args()
    sys.path.insert(0, str(FOLDER))
    outcomes = {}
    for path in sorted(FOLDER.glob("row_*.py")):
        name = path.stem
        number = int(name.removeprefix("row_"))
        if arguments.rows and number not in arguments.rows:
            continue
        outcomes[name] = run_attempt(name, arguments.source.resolve())
        title = importlib.import_module(name).__doc__.strip().splitlines()[0]
        print(f"{number:2d}  {title}\n      {outcomes[name][:200]}", flush=True)
    n_ok = sum(outcome == "ok" for outcome in outcomes.values())
    print(f"{n_ok} of {len(outcomes)} ok")
    Path(arguments.json).write_text(json.dumps(outcomes, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
