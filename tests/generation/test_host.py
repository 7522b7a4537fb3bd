"""What the C library does with freed memory, counted in pages that the kernel had to zero; on glibc alone."""

import platform
import resource
import subprocess
import sys

import pytest

BLOCKS, MEGABYTES = 10, 48
PROBE = f"""
import resource, sys, torch
from pahi.generation.host import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
for _ in range(20):  # the remainders of some small size pile up first: seven of them, then it settles
    torch.ones({MEGABYTES} << 18)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({BLOCKS}):
    torch.ones({MEGABYTES} << 18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_is_used_again() -> None:
    def pages(*arguments: str) -> int:
        return int(subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, check=True).stdout)

    one_block = (MEGABYTES << 20) // resource.getpagesize()
    assert pages("keep") < 2 * one_block
    assert pages() > BLOCKS * one_block, "or this test shows nothing"
