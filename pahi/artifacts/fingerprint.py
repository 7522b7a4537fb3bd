"""Where a stage's output lives: a short hash over what determines it, and nothing else."""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """One spelling for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def content_hash(value: Any) -> str:
    """sha256 of a JSON value's canonical spelling, or of bytes as they are."""
    return hashlib.sha256(value if isinstance(value, bytes | memoryview) else canonical_json(value)).hexdigest()


def fingerprint(stage: str, version: int, settings: Any, inputs: dict[str, str]) -> str:
    """12 hexadecimal digits over the stage, its code's version, its output-changing settings and its inputs' hashes."""
    return content_hash({"stage": stage, "version": version, "settings": settings, "inputs": inputs})[:12]
