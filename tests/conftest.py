"""What all tests share: one thread, no network, an S3 server of our own, the tiny world's tokenizer."""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "pahi-hypothesis"))

import hypothesis
import pytest
import torch
from randomised import randomise
from transformers import CLIPTokenizer

from pahi.artifacts import Store

hypothesis.settings.register_profile(
    "pahi", deadline=None, database=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("pahi")
torch.set_num_threads(1)

STORES = ("local", "memory", "s3")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Public prompt files that lie beside the checkout, where they do."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder shared/ beside the checkout")
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server (moto's) and the environment that leads s3fs to it, as a user would set it."""
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    # s3fs leaves the endpoint to botocore, which reads AWS_ENDPOINT_URL; it is no argument of ours.
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"http://{host}:{port}"
    s3fs.S3FileSystem.clear_instance_cache()
    patch.undo()
    server.stop()


@pytest.fixture
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Store]]:
    """A function from a kind of store to a fresh, empty one."""
    opened: list[Store] = []

    def make(kind: str) -> Store:
        name = uuid.uuid4().hex
        if kind == "local":
            root = str(tmp_path / f"store-{name}")
        elif kind == "memory":
            root = f"memory://{name}"
        else:
            import s3fs

            request.getfixturevalue("s3_server")
            s3fs.S3FileSystem().mkdir(f"bucket-{name}")
            root = f"s3://bucket-{name}/some/prefix"
        opened.append(Store(root))
        return opened[-1]

    yield make
    for store in opened:
        if not store.local:
            store.delete("")


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, open_store: Callable[[str], Store]) -> Store:
    """A fresh store of each kind."""
    return open_store(request.param)


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    """The tiny world's own tokenizer: CLIP's byte-level BPE, 24 tokens."""
    from pahi.tiny.train.data import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="session")
def shake() -> Callable[[torch.nn.Module, int], None]:
    return randomise
