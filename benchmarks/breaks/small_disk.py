"""Disks of a few kilobytes, which a process mounts for itself alone."""

import ctypes
import os

# Flags of Linux: a namespace of mounts, and a mount that other processes do not see.
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18


def mount_small_disk(folder, n_bytes):
    """Make a folder with a disk of this size, which ends with the process."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result):
        if result != 0:
            raise OSError(ctypes.get_errno(), "a small disk needs root on Linux")

    folder.mkdir()
    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    options = f"size={n_bytes}".encode()
    check(libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, options))
    return folder
