"""The store's promises, on a folder, in memory and on a real S3 server."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pahi.artifacts import Store
from pahi.artifacts import store as store_module
from pahi.artifacts.store import TEMPORARY
from pahi.errors import UserError

NOBODY = 65534


def one_line(error: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    """A user's mistake is one line, names what it is about, and says what to do."""
    message = str(error.value)
    assert "\n" not in message and message.strip() == message and ";" in message
    for part in parts:
        assert part in message


def test_create_is_create_only(store: Store) -> None:
    assert store.create("a/b.bin", b"first") is True
    assert store.create("a/b.bin", b"second") is False
    assert store.read("a/b.bin") == b"first"
    assert store.create("a/empty", b"") is True
    assert store.create("a/empty", b"no longer empty") is False
    assert store.read("a/empty") == b""
    assert store.list("") == ["a/b.bin", "a/empty"]


@pytest.mark.parametrize("kind", ["local", "s3"])
@pytest.mark.parametrize("attempt", range(3))
def test_a_race_has_exactly_one_winner(open_store: Callable[[str], Store], kind: str, attempt: int) -> None:
    store = open_store(kind)
    start, won = threading.Barrier(6), {}

    def run(i: int) -> None:
        data = bytes([i]) * 200_000
        start.wait()
        won[i] = store.create(f"race/{attempt}", data)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won.values()) == [False] * 5 + [True]
    winner = next(i for i, result in won.items() if result)
    assert store.read(f"race/{attempt}") == bytes([winner]) * 200_000
    assert store.list("") == [f"race/{attempt}"]


def test_replace_is_always_whole(store: Store) -> None:
    """A reader beside a writer sees one object or the other, never a part."""
    sizes = (100_000, 300_000)
    store.replace("run.json", b"0" * sizes[0])
    stop, seen = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            data = store.read("run.json")
            seen.append((len(data), len(set(data))))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(1, 20):
        store.replace("run.json", bytes([48 + i % 2]) * sizes[i % 2])
    stop.set()
    reader.join()
    assert seen and set(seen) <= {(size, 1) for size in sizes}
    assert store.read("run.json") == b"1" * sizes[1]


def test_list_children_exists_delete(store: Store) -> None:
    keys = ["d/s/1/t/part-00000", "d/s/1/t/part-00001", "d/s/1/manifest.json", "d/s/10/manifest.json", "e/x"]
    for key in reversed(keys):
        store.create(key, key.encode())
    assert store.list("") == sorted(keys)
    assert store.list("d/s/1") == ["d/s/1/manifest.json", "d/s/1/t/part-00000", "d/s/1/t/part-00001"]
    assert store.list("nothing") == []
    assert store.children("") == ["d", "e"]
    assert store.children("d/s") == ["1", "10"]
    assert store.children("d/s/1") == ["manifest.json", "t"]
    assert store.children("nothing") == []
    assert store.exists("d/s/1/manifest.json") and not store.exists("d/s/2/manifest.json")
    # A prefix is whole names: deleting 1 leaves 10.
    store.delete("d/s/1")
    assert store.list("") == ["d/s/10/manifest.json", "e/x"]
    store.delete("d/s/1")
    store.delete("e/x")
    assert store.list("") == ["d/s/10/manifest.json"]
    assert store.create("e/x", b"again") is True


def test_what_is_not_there(store: Store) -> None:
    assert store.read_or_none("nothing/here") is None
    with pytest.raises(FileNotFoundError):
        store.read("nothing/here")


def test_urls_open_elsewhere(store: Store) -> None:
    """What we print as an object's place is what fsspec opens, and a second store on the same root sees it."""
    import fsspec

    store.create("a/b", b"content")
    with fsspec.open(store.url("a/b"), "rb") as file:
        assert file.read() == b"content"
    assert Store(store.root).read("a/b") == b"content"


def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("pahi-data")
    store.create("a", b"1")
    monkeypatch.chdir("/")
    assert (tmp_path / "pahi-data" / "a").read_bytes() == b"1"
    assert store.read("a") == b"1" and store.list("") == ["a"]


def test_leftovers_of_a_killed_writer_are_invisible(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.create("d/whole", b"1")
    (tmp_path / "d" / f"{TEMPORARY}0123456789abcdef").write_bytes(b"torn")
    assert store.list("") == ["d/whole"]
    assert store.children("d") == ["whole"]


def test_a_killed_writer_leaves_no_object(tmp_path: Path) -> None:
    """SIGKILL after the bytes and before the key: nothing at the key, and the next writer succeeds."""
    code = (
        "import os, signal, sys; from pahi.artifacts import Store; s = Store(sys.argv[1]);"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL); s.create('d/key', b'x' * 1000)"
    )
    checkout = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=checkout, check=False)
    assert done.returncode == -9
    assert any((tmp_path / "d").iterdir()), "the kill came too early to test anything"
    store = Store(str(tmp_path))
    assert store.list("") == [] and store.read_or_none("d/key") is None
    assert store.create("d/key", b"whole") is True


def test_no_temporary_files_stay(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.create("d/a", b"1")
    store.create("d/a", b"2")
    store.replace("d/a", b"3")
    assert os.listdir(tmp_path / "d") == ["a"]


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    store = Store(str(tmp_path))
    assert store.create("a", b"1") is True
    assert store.create("a", b"2") is False
    assert store.read("a") == b"1" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["create", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_where_sync_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    store = Store(str(tmp_path))

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as error:
        getattr(store, call)("d/key", b"x")
    one_line(error, store.url("d/key"), "free some space")
    monkeypatch.undo()
    assert store.list("") == [] and os.listdir(tmp_path / "d") == []
    assert store.create("d/key", b"x") is True


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """A 64 kB tmpfs in a mount namespace of its own, which goes with the process."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare to mount a small disk with")
    disk = tmp_path / "disk"
    disk.mkdir()
    code = (
        "import sys, os\n"
        "from pahi.artifacts import Store\n"
        "from pahi.errors import UserError\n"
        "s = Store(sys.argv[1])\n"
        "assert s.create('d/small', b'1')\n"
        "for call in (s.create, s.replace):\n"
        "    try: call('d/large', os.urandom(300_000))\n"
        "    except UserError as e: print(e)\n"
        "print(s.list(''), os.listdir(sys.argv[1] + '/d'), s.create('d/small2', b'1'))\n"
    )
    mount = 'mount -t tmpfs -o size=64k none "$1" || exit 77; exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh", str(disk), sys.executable, code],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this machine lets us mount nothing")
    assert done.returncode == 0, done.stderr
    first, second, after = done.stdout.splitlines()
    assert first == second and "No space left" in first and "free some space" in first
    assert after == "['d/small'] ['small'] True"


def test_an_unwritable_folder() -> None:
    with tempfile.TemporaryDirectory() as name:
        # Not below pytest's own folder, through which another user may not pass.
        os.chmod(name, 0o755)
        folder = Path(name) / "locked"
        folder.mkdir(mode=0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(NOBODY)
        try:
            with pytest.raises(UserError) as error:
                Store(str(folder)).create("d/key", b"x")
        finally:
            if root:
                os.seteuid(0)
        one_line(error, str(folder), "Permission denied", "check its permissions")


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError) as error:
            Store(str(root)).create("d/key", b"x")
        one_line(error, str(root))


@pytest.mark.parametrize("call", ["create", "replace"])
def test_a_missing_bucket(s3_server: str, call: str) -> None:
    store = Store("s3://no-such-bucket-anywhere/prefix")
    with pytest.raises(UserError) as error:
        getattr(store, call)("d/key", b"x")
    one_line(error, "s3://no-such-bucket-anywhere/prefix/d/key", "check that the bucket exists")
    assert store.read_or_none("d/key") is None


def test_an_unknown_kind_of_store() -> None:
    with pytest.raises(UserError) as error:
        Store("nosuchthing://bucket/prefix")
    assert "nosuchthing" in str(error.value) and "\n" not in str(error.value)


def test_a_large_object_on_s3(open_store: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """Large enough for a multipart upload, which must be create-only as well."""
    monkeypatch.setattr(store_module, "PART", 5 * 2**20)  # the least that S3 allows
    store, data = open_store("s3"), b"\x01" * (2 * store_module.PART + 1)
    assert store.create("large", data) is True
    assert store.create("large", b"\x02" * len(data)) is False
    assert store.read("large") == data
    assert store.fs.info(store.path("large"))["ETag"].strip('"').endswith("-3"), "of three parts"
