"""The bucket's policy, held against a server that enforces it: the store needs no right that it does not give."""

import json
import urllib.request
import uuid
from pathlib import Path

import pytest

from pahi.artifacts import Store
from pahi.errors import PahiError
from pahi.maintenance import list_store

S3 = Path(__file__).parents[2] / "infra" / "s3"


def filled(name, bucket, prefix):
    return json.loads((S3 / name).read_text().replace("BUCKET", bucket).replace("PREFIX", prefix))


@pytest.fixture
def enforced():
    """A bucket of a server that checks every request's rights, and a user's client for a policy."""
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    boto3 = pytest.importorskip("boto3")
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    common = {"endpoint_url": url, "region_name": "us-east-1"}
    root = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
    bucket = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3", **common, **root).create_bucket(Bucket=bucket)
    iam = boto3.client("iam", **common, **root)

    def user(policy):
        name = f"user-{uuid.uuid4().hex}"
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="least", PolicyDocument=json.dumps(policy))
        return iam.create_access_key(UserName=name)["AccessKey"]

    def enforce(after="0"):
        # How many more requests go unchecked. As a form, moto would not see the number.
        head = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{url}/moto-api/reset-auth", data=after.encode(), headers=head, method="POST")
        urllib.request.urlopen(request, timeout=10).read()

    patch = pytest.MonkeyPatch()

    def store(key, root_url):
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        return Store(root_url)

    yield bucket, user, store, enforce
    enforce("inf")  # the count is one for every server of this process
    patch.undo()
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_the_store_works_with_the_least_rights_and_sees_nothing_else(enforced, tmp_path):
    bucket, user, store, enforce = enforced
    writer = user(filled("policy.json", bucket, "team/pahi"))
    reader = user(filled("reader-policy.json", bucket, "team/pahi"))
    enforce()
    mine = store(writer, f"s3://{bucket}/team/pahi")
    assert mine.create("demo/train/abc/manifest.json", b'{"shards": []}')
    assert not mine.create("demo/train/abc/manifest.json", b"other"), "create-only needs no right of its own"
    big = tmp_path / "big"
    big.write_bytes(b"x" * (1 << 20))
    assert mine.create_from("demo/train/abc/big", big)
    assert mine.read("demo/train/abc/manifest.json") == b'{"shards": []}'
    assert mine.list("demo") == ["demo/train/abc/big", "demo/train/abc/manifest.json"]
    assert mine.children("") == ["demo"]
    assert [row["stage"] for row in list_store(mine)] == ["train"]
    # moto asks for the right to delete in bulk on the bucket, S3 on each object: one by one it is given.
    mine.delete("demo/train/abc/big")
    assert mine.list("demo") == ["demo/train/abc/manifest.json"]

    with pytest.raises((PahiError, PermissionError)):
        store(writer, f"s3://{bucket}/elsewhere").create("demo/x", b"not mine")
    looking = store(reader, f"s3://{bucket}/team/pahi")
    assert looking.read("demo/train/abc/manifest.json") == b'{"shards": []}'
    with pytest.raises((PahiError, PermissionError)):
        looking.create("demo/x", b"a reader's")
    with pytest.raises((PahiError, PermissionError)):
        looking.delete("demo/train/abc/manifest.json")
    assert looking.list("demo") == ["demo/train/abc/manifest.json"]


def test_the_lifecycle_rules_are_accepted_and_never_touch_a_living_object(s3_server):
    boto3 = pytest.importorskip("boto3")
    rules = filled("lifecycle.json", "bucket", "team/pahi")
    client = boto3.client("s3")
    bucket = f"bucket-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=bucket)
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    stored = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert [rule["ID"] for rule in stored] == [rule["ID"] for rule in rules["Rules"]]
    for rule in rules["Rules"]:
        assert rule["Filter"]["Prefix"] == "team/pahi/"
        assert set(rule.get("Expiration", {})) <= {"ExpiredObjectDeleteMarker"}, "no current object expires"
