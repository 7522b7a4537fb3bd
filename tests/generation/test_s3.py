"""S3 that misbehaves, over real servers: moto's, which honours create-only, and rclone's, which keeps real files."""

import io
import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
import s3fs
from faulty_proxy import FaultyProxy
from small_world import manifests, world

from pahi.artifacts import Store
from pahi.artifacts import store as store_module
from pahi.errors import UserError
from pahi.machine import probe
from pahi.maintenance import leftovers, verify
from pahi.stages import generate, ingest

Calm = tuple[Path, dict[str, bytes]]
Through = Callable[[FaultyProxy], None]
MINUTE = 60.0


@pytest.fixture
def bucket(s3_server: str) -> str:
    name = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Iterator[Through]:
    """Leads every S3 client from here on through a proxy, and back again at the end."""
    monkeypatch.setattr(store_module, "READ_TIMEOUT", 1)
    proxies = []

    def lead(proxy: FaultyProxy) -> None:
        proxies.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()

    yield lead
    s3fs.S3FileSystem.clear_instance_cache()
    for proxy in proxies:
        proxy.shutdown()
        proxy.server_close()


def run(root: str, folder: Path) -> Store:
    ctx = world(root, folder)
    generate.run(ctx, ingest.chain(ctx))
    return ctx.store


def test_refusals_resets_lost_and_torn_answers_and_silence(
    calm: Calm, s3_server: str, bucket: str, through: Through
) -> None:
    folder, expected = calm
    proxy = FaultyProxy(s3_server, share=0.2, stall=1.5)
    proxy.outages = [(60, 3.0)]
    through(proxy)
    store = run(f"s3://{bucket}/p", folder)
    assert set(proxy.faults) >= {"none", "503", "500", "429", "reset before", "reset after", "torn", "stall", "away"}
    proxy.share = 0
    assert manifests(store) == expected
    # What is there is exactly what the manifests name: nothing torn, nothing besides.
    keys = [o["Key"] for o in boto3.client("s3", endpoint_url=s3_server).list_objects_v2(Bucket=bucket)["Contents"]]
    parts = [key for key in keys if "/generate/" in key and key.endswith(".parquet")]
    assert len(parts) == 5 * 3
    client = boto3.client("s3", endpoint_url=s3_server)
    for key in parts:
        pq.read_table(io.BytesIO(client.get_object(Bucket=bucket, Key=key)["Body"].read()))


@pytest.mark.slow
@pytest.mark.faults
def test_a_store_that_is_dead_for_a_minute(calm: Calm, s3_server: str, bucket: str, through: Through) -> None:
    """In the middle of the shards, and with the patience that a run has by default."""
    folder, expected = calm
    proxy = FaultyProxy(s3_server, share=0)
    through(proxy)
    ctx = world(f"s3://{bucket}/p", folder)
    proxy.outages = [(proxy.requests + 20, MINUTE)]
    started = time.monotonic()
    generate.run(ctx, ingest.chain(ctx))
    assert time.monotonic() - started > MINUTE and proxy.faults["away"] > 5
    assert manifests(ctx.store) == expected
    client = boto3.client("s3", endpoint_url=s3_server)
    keys = [o["Key"] for o in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert sum("/generate/" in key and key.endswith(".parquet") for key in keys) == 5 * 3
    assert all(check["ok"] for check in verify(ctx.settings, rows=0))


@pytest.mark.parametrize("fault", ["reset after", "503", "torn"])
def test_a_write_whose_answer_is_lost_is_still_ours(s3_server: str, bucket: str, through: Through, fault: str) -> None:
    proxy = FaultyProxy(s3_server, share=0)
    through(proxy)
    store = Store(f"s3://{bucket}/p")
    assert store.create("before", b"1") is True
    fates = [fault, ""]
    proxy.fate = lambda: fates.pop(0) if fates else ""  # type: ignore[method-assign]
    assert store.create("key", b"ours") is True
    assert store.read("key") == b"ours"
    fates[:] = [fault, ""]
    assert store.create("key", b"theirs") is False
    assert store.read("key") == b"ours"


@pytest.mark.parametrize("fault", ["reset after", "503", "torn"])
def test_a_large_write_whose_last_answer_is_lost_is_still_ours(
    s3_server: str, bucket: str, through: Through, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A shard of many parts, where the request that makes an object of them goes wrong."""
    proxy = FaultyProxy(s3_server, share=0)
    through(proxy)
    monkeypatch.setattr(store_module, "PART", 5 * 2**20)  # the least that S3 allows
    store, data = Store(f"s3://{bucket}/p"), b"\x01" * (2 * store_module.PART + 1)
    store.create("before", b"1")
    fates = ["", "", "", "", fault]
    proxy.fate = lambda: fates.pop(0) if fates else ""  # type: ignore[method-assign]
    assert store.create("key", data) is True
    assert fates == [] and store.read("key") == data
    client = boto3.client("s3", endpoint_url=s3_server)
    assert client.head_object(Bucket=bucket, Key="p/key")["ETag"].strip('"').endswith("-3"), "of three parts"
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads"), "nothing is left behind"


def test_a_store_that_stays_away_is_given_up_in_one_line(s3_server: str, bucket: str, through: Through) -> None:
    proxy = FaultyProxy(s3_server, share=0)
    through(proxy)
    store = Store(f"s3://{bucket}/p")
    store.create("key", b"1")
    store.patience = 2
    proxy.away_until = time.monotonic() + 1000
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        store.read("key")
    assert time.monotonic() - started >= 0.8
    assert "\n" not in str(error.value) and f"s3://{bucket}/p/key" in str(error.value)


def test_a_refusal_that_is_no_accident_is_not_tried_again(s3_server: str, bucket: str, through: Through) -> None:
    proxy = FaultyProxy(s3_server, share=0)
    through(proxy)
    store = Store("s3://no-such-bucket-here/p")
    with pytest.raises(UserError):
        store.create("key", b"1")
    assert proxy.requests <= 2


def test_unfinished_uploads_are_found_and_removed(s3_server: str, bucket: str) -> None:
    client = boto3.client("s3", endpoint_url=s3_server)
    upload = client.create_multipart_upload(Bucket=bucket, Key="p/small/images/part-00001.parquet")
    client.upload_part(
        Bucket=bucket, Key="p/small/images/part-00001.parquet", UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * 9
    )
    client.create_multipart_upload(Bucket=bucket, Key="elsewhere/x")
    store = Store(f"s3://{bucket}/p")
    assert store.list("") == []
    # moto says of every upload that it began in 2010.
    assert leftovers(store, age=1e10)["detail"] == "none of dead runs", "it may be at work"
    assert "part-00001" in leftovers(store)["detail"]
    leftovers(store, clean=True)
    left = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    assert [one["Key"] for one in left] == ["elsewhere/x"], "what is not below the root is not ours"


def test_a_refused_bulk_delete_is_reported(s3_server: str, bucket: str) -> None:
    """S3 answers 200, and names in the body what it kept."""
    store = Store(f"s3://{bucket}/p")
    for name in ("a", "kept", "z"):
        store.create(f"some/{name}", b"1")
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject"}
    deny["Resource"] = f"arn:aws:s3:::{bucket}/p/some/kept"
    client = boto3.client("s3", endpoint_url=s3_server)
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    with pytest.raises(UserError, match=f"1 objects, the first s3://{bucket}/p/some/kept: Access Denied") as error:
        store.delete("some")
    assert "\n" not in str(error.value) and "check its permissions" in str(error.value)
    assert store.list("") == ["some/kept"]
    client.delete_bucket_policy(Bucket=bucket)
    store.delete("some")
    assert store.list("") == []
    deny["Resource"] = f"arn:aws:s3:::{bucket}/p/_probe/*"
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    with pytest.raises(UserError, match="Access Denied"):
        probe(store)


# ------------------------------------------------------------------------------------------------------------- rclone


def test_real_files_behind_s3(calm: Calm, s3_server: str, rclone: tuple[str, Path], through: Through) -> None:
    """Written through rclone and a bad line, the files on its disk are those of an undisturbed run on ours."""
    folder, expected = calm
    url, files = rclone
    proxy = FaultyProxy(url, share=0.1, seed=1, stall=1.5)
    through(proxy)
    store = run("s3://bucket/p", folder)
    proxy.share = 0
    assert sum(count for fate, count in proxy.faults.items() if fate != "none") > 5
    assert manifests(store) == expected
    ours = {str(p.relative_to(folder / "store")): p for p in (folder / "store/small/generate").rglob("part-*.parquet")}
    theirs = {str(p.relative_to(files / "p")): p for p in (files / "p/small/generate").rglob("part-*.parquet")}
    assert set(ours) == set(theirs) and len(ours) == 15
    assert all(theirs[key].read_bytes() == path.read_bytes() for key, path in ours.items())
    ctx = world("s3://bucket/p", folder)
    assert all(check["ok"] for check in verify(ctx.settings, rows=0))
    assert "create-only NOT honoured" in probe(store)


def test_the_probe_says_that_moto_honours_create_only(s3_server: str, bucket: str) -> None:
    assert "create-only honoured" in probe(Store(f"s3://{bucket}/p"))
