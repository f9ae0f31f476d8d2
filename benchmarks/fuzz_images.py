"""Check that mutated image files are decoded or counted as unreadable, and no more.

    python benchmarks/fuzz_images.py --files 10000

For each format that the package opens, valid files are written with Pillow, or begin as
such files do, where Pillow cannot write the format. Then bytes change, mostly in the
header. All files are named .png, since Pillow opens files by their content. They are
read as `fit` reads a folder: the header of each file, then the pixels, in workers.

Print for each format the number of files that were decoded, that were unreadable, and
that ended their worker, with the seconds of the slowest batch of 50 files and the peak
memory of a worker so far. A stand-in for Ghostscript on PATH would show that a program
was started.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import struct
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from skdeepcluster._inputs.collection import ImageCollection
from skdeepcluster._inputs.common_format import find_common_format
from skdeepcluster._inputs.file_formats import FORMATS, LISTED_FORMATS
from skdeepcluster._inputs.image_format import ImageFormat
from skdeepcluster._inputs.images import DecodedSource

# Number of files on disk at once, and in one task of a worker.
FILES_PER_BLOCK, FILES_PER_TASK = 500, 50
# Starts of files of formats that Pillow reads, but does not write.
SIGNATURES = {
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 32, 32, 8, 3) + bytes(99),
    "FITS": b"".join(
        card.ljust(80).encode()
        for card in (
            "SIMPLE  =                    T",
            "BITPIX  =                    8",
            "NAXIS   =                    2",
            "NAXIS1  =                   32",
            "NAXIS2  =                   32",
            "END",
        )
    ).ljust(2880)
    + bytes(1024),
    "XPM": b'/* XPM */\nstatic char *x[] = {\n"4 4 1 1",\n"a c #000000",\n"aaaa",\n',
    "SUN": struct.pack(">8I", 0x59A66A95, 32, 32, 8, 1024, 1, 0, 0) + bytes(1024),
    "CUR": b"\0\0\2\0\1\0" + bytes(2000),
    "DCX": struct.pack("<3I", 987654321, 16, 0) + bytes(2000),
    "PIXAR": b"\200\350\0\0" + bytes(2000),
    "GBR": struct.pack(">5I4s", 32, 2, 32, 32, 4, b"GIMP") + bytes(9000),
    "FTEX": b"FTEX" + struct.pack("<i4i2i", 1, 32, 32, 1, 1, 0, 40) + bytes(3000),
    "FLI": struct.pack("<IHHHHHH", 2000, 0xAF11, 1, 32, 32, 8, 3) + bytes(2000),
    "MCIDAS": b"\0\0\0\0\0\0\0\4" + bytes(2000),
    "XVTHUMB": b"P7 332\n#END_OF_COMMENTS\n32 32 255\n" + bytes(1024),
    "PCD": bytes(2048) + b"PCD_" + bytes(400_000),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nquit\n",
}
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def make_valid_files(image_format):
    """Return the contents of valid files of a format, in each mode that it takes."""
    Image.init()
    contents = []
    color = Image.fromarray(PIXELS)
    for mode in ("RGB", "L", "RGBA", "P", "I;16", "1", "CMYK", "F"):
        file = io.BytesIO()
        # No format takes each mode.
        with contextlib.suppress(OSError, KeyError, ValueError, SystemError):
            color.convert(mode).save(file, image_format)
            contents.append(file.getvalue())
    return contents or [SIGNATURES[image_format]]


def mutate(content, rng):
    """Change, insert, remove or repeat bytes, mostly in the first hundred bytes."""
    mutated = bytearray(content)
    end = len(mutated) if rng.random() < 0.4 else min(100, len(mutated))
    for _ in range(rng.integers(1, 5)):
        start, size = int(rng.integers(end)), int(rng.integers(1, 9))
        choice = rng.integers(6)
        if choice == 0:
            mutated[start : start + 1] = bytes([rng.choice([0, 1, 127, 128, 255])])
        elif choice == 1:
            mutated[start : start + size] = rng.bytes(size)
        elif choice == 2:
            # Sizes and offsets are numbers of 4 bytes.
            number = int(rng.choice([0, 1, 2**15, 2**16, 2**31 - 1, 2**32 - 1]))
            mutated[start : start + 4] = struct.pack(rng.choice(["<I", ">I"]), number)
        elif choice == 3:
            del mutated[start : start + size]
        elif choice == 4:
            mutated[start:start] = mutated[start : start + size] * 3
        else:
            del mutated[max(start, 8) :]
        if not mutated:
            return b"\0"
        end = min(end, len(mutated))
    return bytes(mutated)


def read_files(paths):
    """Read files as `fit` does, and return the causes of failures by row."""
    # A path of bytes would be a sequence of numbers.
    names = np.array([str(path) for path in paths], dtype=object)
    collection = ImageCollection(names, names)
    _, failures = find_common_format(collection, None, 32, 1, "stretch")
    image_format = ImageFormat((3, 32, 32), np.uint8, "stretch")
    rows = np.flatnonzero(~failures.mask(np.arange(len(paths))))
    source = DecodedSource(collection, image_format, rows, 1, True, failures)
    starts = range(0, len(rows), FILES_PER_TASK)
    for _ in source.batches([slice(i, i + FILES_PER_TASK) for i in starts]):
        pass
    return source.failures.messages


def fuzz_format(image_format, n_files, folder, rng):
    """Return the counts, and the seconds of the slowest block, for one format."""
    valid = make_valid_files(image_format)
    paths = [folder / f"{i:04d}.png" for i in range(min(n_files, FILES_PER_BLOCK))]
    n_unreadable = n_killed = n_done = 0
    slowest = 0.0
    while n_done < n_files:
        block = paths[: n_files - n_done]
        for path in block:
            path.write_bytes(mutate(valid[rng.integers(len(valid))], rng))
        start = time.perf_counter()
        messages = read_files(block)
        slowest = max(slowest, time.perf_counter() - start)
        killed = [text for text in messages.values() if "ends the process" in text]
        n_killed += len(killed)
        n_unreadable += len(messages) - len(killed)
        n_done += len(block)
    return {
        "format": image_format,
        "decoded": n_done - n_unreadable - n_killed,
        "unreadable": n_unreadable,
        "killed": n_killed,
        "slowest_s": slowest * FILES_PER_TASK / FILES_PER_BLOCK,
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def install_stand_ins(folder):
    """Put programs on PATH that leave evidence of their start, and return its path."""
    evidence = folder / "evidence"
    for name in ("gs", "gswin32c", "gswin64c", "ghostscript", "djpeg", "convert"):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho {name} >> {evidence}\n")
        program.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return evidence


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=10_000, help="of each format")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations")
    parser.add_argument("--formats", nargs="*", help="instead of all formats")
    parser.add_argument("--json", default="fuzz_images.json", help="file to write")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    Image.init()
    formats = arguments.formats or [
        name
        for name in (*FORMATS, *LISTED_FORMATS, "EPS")
        if name in Image.SAVE or name in SIGNATURES
    ]
    rows = []
    header = ("decoded", "unreadable", "killed", "slowest_s", "peak_mib")
    print(f"{'format':10s}" + "".join(f"{name:>12s}" for name in header))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        programs = folder / "programs"
        programs.mkdir()
        evidence = install_stand_ins(programs)
        for number, name in enumerate(formats):
            rng = np.random.default_rng([arguments.seed, number])
            row = fuzz_format(name, arguments.files, folder, rng)
            rows.append(row)
            values = "".join(
                f"{row[name]:12.2f}" if name == "slowest_s" else f"{row[name]:12.0f}"
                for name in header
            )
            print(f"{row['format']:10s}{values}", flush=True)
        is_started = evidence.exists()
    print(f"program started: {is_started}")
    content = {"rows": rows, "program_started": is_started}
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
