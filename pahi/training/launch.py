"""Starts a module in several processes with torchrun, and listens to what they say.

Their standard output is a pipe to this process, one line a message. A message that finds nobody at the other end stops
its process, and torchrun the rest: nothing goes on training behind a command that was killed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

from pahi import errors
from pahi.errors import PahiError

MARK = "pahi-message "  # what libraries print there is none


def together(module: str, processes: int, variables: dict[str, str], heard: Callable[[dict[str, Any]], None]) -> None:
    """Runs `python -m module` in so many processes of this machine, and returns when all of them have ended well.

    `variables` are added to their environment; `heard` is given every message but errors. Raises the first process's
    PahiError as it was, and whatever else ended one as a PahiError.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(processes), "-m", module]
    # torchrun would set one thread and warn.
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ, **variables, "PYTHONUNBUFFERED": "1"}
    failed: dict[str, Any] | None = None
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=complaints, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    message = json.loads(line.removeprefix(MARK))
                    if "error" not in message:
                        heard(message)
                    elif failed is None:
                        # The others' errors are only that this one left them.
                        failed = message
        except BaseException:
            process.terminate()
            raise
        code = process.wait()
        complaints.seek(0)
        said = complaints.read()
    if failed is not None:
        kind = getattr(errors, failed["error"], None)
        if kind is None:
            raise PahiError(f"training in {processes} processes: {failed['error']}: {failed['message']}")
        raise kind(failed["message"])
    if code:
        # torchrun ends the others with SIGTERM, and lists them first.
        signals = [found for found in re.findall(r"Signal \d+ \(\w+\)", said) if "SIGTERM" not in found]
        last = (said.strip().splitlines() or [f"exit code {code}"])[-1]
        raise PahiError(f"training in {processes} processes stopped: {signals[0] if signals else last}")


def tell(**message: Any) -> None:
    """Says something to the process that started this one. Ends this one where it is gone."""
    try:
        # One write, so that the processes' lines do not mix; on a line of its own, whatever a library left unended.
        os.write(1, f"\n{MARK}{json.dumps(message)}\n".encode())
    except BrokenPipeError:
        os._exit(1)


def told(work: Callable[[], None]) -> None:
    """Does the work of one process; what goes wrong is told, and ends it with exit code 1."""
    try:
        work()
    except Exception as error:
        traceback.print_exc()
        tell(error=type(error).__name__, message=" ".join(str(error).split())[:1000])
        # Not sys.exit: what waits for the others in torch.distributed would wait on.
        sys.stderr.flush()
        os._exit(1)
