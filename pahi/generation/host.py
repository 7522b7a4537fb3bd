"""The host's own memory."""

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT = 2**30  # bytes


def keep_freed_memory() -> bool:
    """Has the C library keep what was freed for what comes next; says whether it does.

    By default glibc gives a large block back to the kernel at once, which then zeroes every page of the next one. Each
    layer's output, where a CPU draws or trains, and each picture that is encoded is such a block: a tenth of the
    networks' time. Other C libraries, and other allocators put in place of glibc's, are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Older ones take 32 MB at most.
        if any(mallopt(MMAP_THRESHOLD, most) for most in (KEPT, 2**25)):
            return bool(mallopt(TRIM_THRESHOLD, KEPT))
    return False
