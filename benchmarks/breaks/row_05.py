"""Small image files unpack to more pixels than Pillow's limit."""

import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from skdeepcluster import DeepClusterEstimator

SIDE = 13_300


def write_bomb(path):
    """Write a transparent PNG file with a palette, of SIDE x SIDE equal pixels."""
    compressor = zlib.compressobj(9)
    row = bytes(SIDE + 1)
    pixels = b"".join(compressor.compress(row) for _ in range(SIDE))
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", SIDE, SIDE, 8, 3, 0, 0, 0),
        b"PLTE": bytes(6),
        b"tRNS": bytes([0, 128]),
        b"IDAT": pixels + compressor.flush(),
        b"IEND": b"",
    }
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in chunks.items():
            checksum = struct.pack(">I", zlib.crc32(name + content))
            file.write(struct.pack(">I", len(content)) + name + content + checksum)


def row_05(folder):
    """Fit a folder with such a file, and predict it."""
    rng = np.random.default_rng(0)
    for i in range(16):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    write_bomb(folder / "bomb.png")
    model = DeepClusterEstimator(
        2, max_iter=1, epochs_per_iter=1, on_error="skip", n_jobs=1
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(folder)
        labels = model.predict(folder)
    if any(issubclass(w.category, Image.DecompressionBombWarning) for w in caught):
        return "Pillow warns of a bomb"
    if model.skipped_.tolist() != [16] or labels[16] != -1:
        return "the bomb is decoded"
    return "ok"
