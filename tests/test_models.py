"""Models from the Hub, a store or a folder: each ends in verified files or in one clear line.

The Hub is a server of our own that speaks its API; each look-up is a process of its own that HF_ENDPOINT leads there.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Repository, commit_name, hub, read_folder

from pahi import fetch, models
from pahi.artifacts import Store
from pahi.errors import UserError

TINY = "pkg:pahi.tiny/weights/generator"
ID = "acme/one-step"
NEW, OLD = commit_name("new"), commit_name("old")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SURPLUS = {
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "one_step.safetensors": b"the whole pipeline once more" * 1000,
    "picture.png": b"png" * 9000,
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half" * 9000,
    "unet/diffusion_pytorch_model.bin": b"pickle" * 9000,
    "unet/model.onnx": b"onnx" * 9000,
    "safety_checker/model.safetensors": b"safety" * 9000,
}

LOOK_UP = """
import json, sys
from pahi import fetch, models
from pahi.errors import UserError
model, revision = sys.argv[1], sys.argv[2] or None
try:
    folder = models.resolve(model, revision, only=tuple(sys.argv[3:]))
    found = models.files(folder, only=tuple(sys.argv[3:]))
    print(json.dumps({"folder": str(folder), "commit": fetch.commit_of(folder), "hash": models.model_hash(folder),
                      "files": found} if not sys.argv[3:] else {"files": found, "folder": str(folder)}))
except UserError as error:
    sys.exit(str(error))
"""


class Hub:
    """A server with one repository, and a client with a cache of its own."""

    def __init__(self, url: str, repository: Repository, cache: Path) -> None:
        self.url, self.repository, self.cache = url, repository, cache

    def environment(self, **extra: str) -> dict[str, str]:
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.cache / "hub"),
            "XDG_CACHE_HOME": str(self.cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return {k: v for k, v in os.environ.items() if k != "HF_TOKEN"} | own | extra

    def run(self, code: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment(**extra), timeout=120)

    def look_up(self, revision: str = "", *only: str, model: str = ID, **extra: str) -> dict[str, Any]:
        done = self.run(LOOK_UP, model, revision, *only, **extra)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refusal(self, revision: str = "", *only: str, model: str = ID, **extra: str) -> str:
        """The one line that a look-up ends in."""
        done = self.run(LOOK_UP, model, revision, *only, **extra)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith((model, "cannot", "the Hub", "model"))]
        assert len(lines) == 1, done.stderr
        return lines[0]

    def fetched(self) -> list[str]:
        return [r.split("/resolve/")[1].split("/", 1)[1] for r in self.repository.requests if r.startswith("GET /acme")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    new = read_folder(models.resolve(TINY))
    old = new | {"vae/config.json": new["vae/config.json"].replace(b"{", b'{"older": true,', 1)}
    repository = Repository({NEW: new | SURPLUS, OLD: old | SURPLUS}, {"main": NEW})
    with hub({ID: repository}) as url:
        yield Hub(url, repository, tmp_path)


# ------------------------------------------------------------------------------------------------------------- the Hub


def test_a_model_is_fetched_without_what_loading_never_reads(server: Hub) -> None:
    got = server.look_up()
    assert got["commit"] == NEW
    local = models.files(models.resolve(TINY))
    assert got["files"] == local and got["hash"] == models.model_hash(models.resolve(TINY))
    assert not set(server.fetched()) & set(SURPLUS)
    for name, entry in got["files"].items():
        data = (Path(got["folder"]) / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_a_pinned_revision_is_that_one_and_needs_no_network_again(server: Hub) -> None:
    got = server.look_up(OLD)
    assert got["commit"] == OLD and b'"older"' in (Path(got["folder"]) / "vae" / "config.json").read_bytes()
    assert got["hash"] != server.look_up()["hash"]
    server.repository.requests.clear()
    assert server.look_up(OLD) == got and not server.repository.requests


def test_single_files_are_fetched_alone(server: Hub) -> None:
    """Hyper-SD's repository holds dozens of gigabytes; a part is one file of it."""
    got = server.look_up("", "one_step.safetensors")
    assert list(got["files"]) == ["one_step.safetensors"] and set(server.fetched()) == {"one_step.safetensors"}
    assert "has no two_step.safetensors" in server.refusal("", "two_step.safetensors")


def test_what_is_not_there_is_one_line(server: Hub) -> None:
    wrong = commit_name("another")
    assert f"no revision {wrong!r}" in server.refusal(wrong)
    assert "no revision 'v2'" in server.refusal("v2")
    assert "no model 'acme/none'" in server.refusal(model="acme/none")
    assert "neither a folder here nor a Hub id" in server.refusal(model="none")


def test_a_gated_model_says_what_to_do(server: Hub) -> None:
    server.repository.gated = True
    message = server.refusal()
    assert "accept its licence" in message and "HF_TOKEN" in message


@pytest.mark.parametrize("name", [WEIGHTS, "vae/config.json"])
def test_a_wrong_digest_is_found_and_mended_by_another_run(server: Hub, name: str) -> None:
    """The client compares sizes only; a flipped bit would be cached for good."""
    server.repository.damaged.add(name)
    message = server.refusal()
    assert name in message and "the Hub says" in message and "run again" in message
    server.repository.damaged.clear()
    assert server.look_up()["hash"] == models.model_hash(models.resolve(TINY))


def test_a_file_damaged_on_this_disk_is_found(server: Hub) -> None:
    blob = (Path(server.look_up(NEW)["folder"]) / WEIGHTS).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert WEIGHTS in server.refusal(NEW)
    assert server.look_up(NEW)["hash"] == models.model_hash(models.resolve(TINY))


def test_a_missing_file_is_one_line(server: Hub) -> None:
    server.repository.missing.add(WEIGHTS)
    message = server.refusal()
    assert ID in message and "diffusion_pytorch_model.safetensors" in message


def test_a_connection_that_breaks_once_is_resumed(server: Hub) -> None:
    server.repository.breaks[WEIGHTS] = 1
    assert server.look_up()["hash"] == models.model_hash(models.resolve(TINY))
    assert server.fetched().count(WEIGHTS) == 2


@pytest.mark.slow
def test_a_connection_that_always_breaks_is_one_line_and_another_run_continues(server: Hub) -> None:
    server.repository.breaks[WEIGHTS] = 1000
    message = server.refusal()
    assert "cannot fetch" in message and "run again" in message
    server.repository.breaks.clear()
    assert server.look_up()["hash"] == models.model_hash(models.resolve(TINY))


def test_offline(server: Hub) -> None:
    message = server.refusal(HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in message and "no complete copy" in message
    got = server.look_up()
    assert server.look_up(HF_HUB_OFFLINE="1") == got
    # A copy that lost a file is not taken for a whole one.
    (Path(got["folder"]) / WEIGHTS).unlink()
    assert "no complete copy" in server.refusal(HF_HUB_OFFLINE="1")


def test_no_server_at_all(server: Hub) -> None:
    nowhere = "http://127.0.0.1:9"
    message = server.refusal(HF_ENDPOINT=nowhere)
    assert "cannot be reached" in message and "no complete copy" in message
    got = server.look_up()
    assert server.look_up(HF_ENDPOINT=nowhere) == got


PICTURE = """
import hashlib, sys
import torch
from pahi.generators import load_generator, standard_noise
torch.set_num_threads(1)
g = load_generator(sys.argv[1], sys.argv[2] or None, device="cpu")
z = standard_noise(["a"], [1], g.latent_shape)
with torch.no_grad():
    picture = g.decode(g.denoise(z, g.encode(["a red circle"])))
print(g.revision, g.hash, hashlib.sha256(picture.numpy().tobytes()).hexdigest())
"""


def test_a_generator_of_the_hub_draws_what_its_folder_draws(server: Hub) -> None:
    there, here = (server.run(PICTURE, model, rev).stdout.split() for model, rev in ((ID, NEW), (TINY, "")))
    assert there[0] == NEW and here[0] == "None" and there[1:] == here[1:] and len(there) == 3


# --------------------------------------------------------------------------------------------------------------- stores


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pahi" / "models"


def upload(store: Store, prefix: str, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        store.replace(f"{prefix}/{name}", data)
    return store.url(prefix)


@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_a_snapshot_in_a_store(open_store: Callable[[str], Store], kind: str, caches: Path) -> None:
    store = open_store(kind)
    tiny = models.resolve(TINY)
    url = upload(store, "models/one-step", read_folder(tiny) | SURPLUS)
    folder = models.resolve(url)
    assert models.model_hash(folder) == models.model_hash(tiny) and models.files(folder) == models.files(tiny)
    assert not any((folder / name).exists() for name in SURPLUS)
    assert models.resolve(url + "/") == folder and len(list(caches.iterdir())) == 1
    # New weights at the same place are another copy.
    changed = read_folder(tiny)["vae/config.json"].replace(b"{", b'{"newer": true,', 1)
    store.replace("models/one-step/vae/config.json", changed)
    other = models.resolve(url)
    assert other != folder and models.model_hash(other) != models.model_hash(tiny)


def test_a_store_without_the_model_is_one_line(open_store: Callable[[str], Store], caches: Path) -> None:
    store = open_store("s3")
    for url, words in (
        (store.url("models/none"), "there is no model"),
        ("s3://no-such-bucket-anywhere/x", ""),
        ("nosuch://x/y", "nosuch"),
    ):
        with pytest.raises(UserError) as error:
            models.resolve(url)
        assert "\n" not in str(error.value) and url in str(error.value) and words in str(error.value)
    store.replace("models/torn/model_index.json", b"{")
    with pytest.raises(UserError, match=r"model_index\.json"):
        models.resolve(store.url("models/torn"))


def test_a_copy_that_stops_halfway_leaves_nothing(
    open_store: Callable[[str], Store], caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store("memory")
    url = upload(store, "m", read_folder(models.resolve(TINY)))
    real = type(store.fs).get_file
    calls: list[str] = []

    def torn(self: Any, there: str, here: str, **kwargs: Any) -> None:
        calls.append(there)
        if len(calls) == 4:
            raise OSError("connection reset")
        real(self, there, here, **kwargs)

    monkeypatch.setattr(type(store.fs), "get_file", torn)
    with pytest.raises(UserError, match="connection reset; run again"):
        models.resolve(url)
    assert not list(caches.iterdir())
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches.parents[1]))
    assert models.model_hash(models.resolve(url)) == models.model_hash(models.resolve(TINY))


# ------------------------------------------------------------------------------------------------------------ selection


def test_selection() -> None:
    names = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder/pytorch_model.bin.index.json",
        "tokenizer/merges.txt",
        "tokenizer/spiece.model",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
        "vae_decoder/model.onnx",
        "sd_turbo.safetensors",
        "README.md",
        ".cache/huggingface/download/x.json",
    ]
    parts = ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    assert fetch.select(names, parts) == [*names[:6], *names[9:12], *names[13:16]]
    without = fetch.select(names, parts, skip=("unet",))
    assert "unet/config.json" in without and not any(n.startswith("unet/diff") for n in without)
    assert fetch.select(names, only=("sd_turbo.safetensors",)) == ["sd_turbo.safetensors"]
    # What is published in one form only is taken as it is.
    assert fetch.select(["m.fp16.safetensors", "config.json"]) == ["config.json", "m.fp16.safetensors"]
    assert fetch.select(["ImageReward.pt", "med_config.json"]) == ["ImageReward.pt", "med_config.json"]
    assert fetch.select(["model.safetensors", "pytorch_model.bin"]) == ["model.safetensors"]


def test_components() -> None:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "image_encoder": [None, None],
        "requires_safety_checker": True,
    }
    assert fetch.components(index) == ["unet"]


def test_large_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "large.bin"
    file.write_bytes(bytes(50_000_001))
    expected = hashlib.sha256(bytes(50_000_001)).hexdigest()
    assert models.sha256(file) == expected
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert models.sha256(file) == expected
    os.utime(file, ns=(1, 1))
    with pytest.raises(TypeError):
        models.sha256(file)
