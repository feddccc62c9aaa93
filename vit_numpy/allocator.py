"""Keeping freed memory, so that fresh arrays do not cost page faults."""

import ctypes
import sys

# The parameters of mallopt(3) in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Let the process keep memory that is freed, and hand it out again.

    By default glibc returns large arrays to the system as they are freed, and the
    system clears every page of the next one: the largest single cost of training in
    NumPy. The process then holds on to the most it ever used. Call this once, before
    training; nothing in the library does so by itself.

    Returns
    -------
    bool
        Whether the allocator took the settings: False where it is not glibc's.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, 1 << 30),
        (_M_TRIM_THRESHOLD, (1 << 31) - 1),
        (_M_TOP_PAD, 64 << 20),
        # One heap for all threads, so that each can use what another has freed.
        (_M_ARENA_MAX, 1),
    )
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
