"""How anything is written down: the store, schemas, manifests and fingerprints."""

from pahi.artifacts.fingerprint import content_hash, fingerprint
from pahi.artifacts.output import Manifest, Output
from pahi.artifacts.store import Store

__all__ = ["Manifest", "Output", "Store", "content_hash", "fingerprint"]
