"""Publishing: to the Hub through its own client, to a folder and to a store; stopped halfway, and again."""

import io
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from curated_world import World
from dataset_hub import TOKEN, Hub, serve
from huggingface_hub import HfApi, constants

from pahi.artifacts import Output, Store, content_hash
from pahi.curation import publish as module
from pahi.curation.publish import CARD, publish, published_files
from pahi.errors import PahiError, UserError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """A Hub of our own, and the client led to it as HF_ENDPOINT and HF_TOKEN lead it."""
    with serve() as server:
        for name, value in (("ENDPOINT", server.address), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(module, "COMMIT_FILES", 3)
        assert HfApi().endpoint == server.address
        yield server


def contents(output: Output, preferences: bool = False) -> dict[str, bytes]:
    return {f.name: output.store.read(f.key) for f in published_files(output, preferences=preferences)}


def test_the_hub_gets_every_file_and_the_card_last(hub: Hub, curated: Output) -> None:
    done = publish(curated, "hf://datasets/me/shapes", private=True)
    assert hub.datasets == {"me/shapes": contents(curated)} and hub.private == {"me/shapes": True}
    assert done == {
        "url": f"{hub.address}/datasets/me/shapes",
        "sent": len(contents(curated)),
        "unchanged": 0,
        "removed": 0,
    }
    assert hub.commits[-1] == [CARD] and len(hub.commits) > 2
    # Again: nothing is sent, nothing is committed.
    commits, uploads = len(hub.commits), len(hub.uploads)
    again = publish(curated, "hf://datasets/me/shapes/")
    assert (again["sent"], again["unchanged"]) == (0, done["sent"])
    assert (len(hub.commits), len(hub.uploads)) == (commits, uploads)


def test_what_was_published_loads_by_its_card(hub: Hub, curated: Output, tmp_path: Path) -> None:
    publish(curated, "hf://datasets/me/shapes")
    for name, data in hub.datasets["me/shapes"].items():
        path = tmp_path / "down" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    loaded = datasets.load_dataset(str(tmp_path / "down"), cache_dir=str(tmp_path / "cache"))
    assert {k: len(v) for k, v in loaded.items()} == curated.require().summary["splits"]


def test_a_broken_connection_costs_only_what_was_on_its_way(hub: Hub, curated: Output) -> None:
    hub.break_after = 4
    with pytest.MonkeyPatch.context() as patch:
        # The client waits up to a minute between its own attempts.
        patch.setattr("time.sleep", lambda _: None)
        with pytest.raises(PahiError, match="run again, what has arrived is not sent twice") as error:
            publish(curated, "hf://datasets/me/shapes")
    assert "\n" not in str(error.value)
    arrived, committed = list(hub.uploads), sum(map(len, hub.commits))
    assert len(arrived) == 4 and 0 < committed < len(contents(curated))
    assert CARD not in hub.datasets["me/shapes"]
    hub.break_after = None
    done = publish(curated, "hf://datasets/me/shapes")
    assert hub.datasets["me/shapes"] == contents(curated)
    assert done["unchanged"] == committed and len(hub.uploads) == len(set(hub.uploads)), "nothing is sent twice"


def test_another_dataset_takes_the_place_of_the_first_and_leaves_foreign_files(
    hub: Hub, world: World, curated: Output
) -> None:
    publish(curated, "hf://datasets/me/shapes")
    hub.datasets["me/shapes"] |= {"LICENSE": b"mine", "train/more.parquet": b"mine too"}
    smaller = world.curate("curate.top_k=1", "curate.preferences=null")
    done = publish(smaller, "hf://datasets/me/shapes")
    mine = {"LICENSE": b"mine", "train/more.parquet": b"mine too"}
    assert hub.datasets["me/shapes"] == contents(smaller) | mine | {
        "preferences/README.md": contents(curated)["preferences/README.md"]
    }
    assert done["removed"] > 0 and CARD in hub.commits[-1], "the old files go with the old card"


def test_the_preference_set_is_a_dataset_of_its_own(hub: Hub, world: World, curated: Output, tmp_path: Path) -> None:
    publish(curated, "hf://datasets/me/pairs", preferences=True)
    files = hub.datasets["me/pairs"]
    assert set(files) == {f.removeprefix("preferences/") for f in contents(curated) if f.startswith("preferences/")}
    publish(curated, str(tmp_path / "pairs"), preferences=True)
    loaded = datasets.load_dataset(str(tmp_path / "pairs"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == curated.require().summary["preferences"]["train"]
    with pytest.raises(UserError, match="no preference pairs"):
        publish(world.curate("curate.preferences=null"), str(tmp_path / "none"), preferences=True)


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_a_folder_and_a_store_are_as_good_as_the_hub(open_store, kind: str, world: World, curated: Output) -> None:
    target: Store = open_store(kind)
    first = publish(curated, target.root)
    assert {k: target.read(k) for k in target.list("")} == contents(curated)
    assert (first["sent"], publish(curated, target.root)["sent"]) == (len(contents(curated)), 0)
    target.replace("train/part-00000.parquet", b"torn")
    target.replace("notes.txt", b"mine")
    target.replace("train/part-00099.parquet", b"of an earlier dataset")
    done = publish(curated, target.root)
    assert (done["sent"], done["removed"]) == (1, 1)
    assert {k: target.read(k) for k in target.list("")} == contents(curated) | {"notes.txt": b"mine"}


def test_from_a_store_that_is_no_disk(hub: Hub, open_store, curated: Output) -> None:
    remote = Output(open_store("memory"), curated.dataset, curated.stage, curated.fingerprint)
    for key in curated.store.list(curated.prefix):
        remote.store.create(key, curated.store.read(key))
    publish(remote, "hf://datasets/me/remote")
    assert hub.datasets["me/remote"] == contents(curated)


def test_a_damaged_file_is_not_published(hub: Hub, open_store, curated: Output) -> None:
    copy = Output(open_store("local"), curated.dataset, curated.stage, curated.fingerprint)
    for key in curated.store.list(curated.prefix):
        copy.store.create(key, curated.store.read(key))
    copy.store.replace(copy.key("test/part-00000.parquet"), b"torn")
    for target in ("hf://datasets/me/torn", open_store("local").root):
        with pytest.raises(UserError, match=r"part-00000\.parquet is missing or damaged.*pahi verify"):
            publish(copy, target)
    assert "test/part-00000.parquet" not in hub.datasets["me/torn"] and CARD not in hub.datasets["me/torn"]


@pytest.mark.parametrize(
    ("target", "environment", "said"),
    [
        ("hf://datasets/me", {}, "expected hf://datasets/OWNER/NAME"),
        ("hf://me/shapes", {}, "expected hf://datasets/OWNER/NAME"),
        ("hf://datasets/me/shapes", {"HF_TOKEN": "hf_wrong"}, "HF_TOKEN"),
        ("hf://datasets/you/shapes", {}, "does not let you write you/shapes"),
    ],
)
def test_mistakes_are_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, curated: Output, target: str, environment: dict[str, str], said: str
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=said) as error:
        publish(curated, target)
    assert "\n" not in str(error.value) and "hf_" not in str(error.value)


def test_the_command_without_a_dataset_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pahi.cli", "publish", str(tmp_path / "out"), "--root", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "run `pahi curate --with-upstream` first" in done.stderr
    assert not (tmp_path / "out").exists()


def test_files_are_named_by_the_manifest(curated: Output) -> None:
    files = published_files(curated)
    assert files[-1].name == CARD
    for file in files:
        data = curated.store.read(file.key)
        assert (len(data), content_hash(data)) == (file.bytes, file.sha256)
    assert io.BytesIO(contents(curated)["samples.png"]).read(4) == b"\x89PNG"
