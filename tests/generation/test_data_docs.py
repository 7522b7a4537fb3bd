"""docs/data.md: every column of every table is in it, and its snippets run against a real S3 server."""

import os
import re
import uuid
from pathlib import Path

import boto3
import duckdb
import pyarrow as pa
import pytest
import s3fs
from small_world import world

from pahi.artifacts import schemas
from pahi.stages import generate, ingest

DOC = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", DOC, re.S | re.M))
TABLES = {
    "ingest: `prompts`": schemas.PROMPTS,
    "ingest: `rejects`": schemas.REJECTS,
    "cache: `baseline`": schemas.BASELINE,
    "cache: `conditioning`": schemas.embeds_schema({"embed_prompt_embeds": (2, 2), "pooled": (2,)}, truncated=True),
    "train: `metrics`": schemas.METRICS,
    "evaluate: `scores`": schemas.SCORES,
    "evaluate: `evaluated`": schemas.EVALUATED,
    "evaluate: `gallery`": schemas.GALLERY,
    "generate: `images`": schemas.IMAGES,
    "generate: `scores`": schemas.IMAGE_SCORES,
    "generate: `candidates`": schemas.CANDIDATES,
    "generate: `noise`": schemas.noise_schema((4, 2, 2)),
    "curate: `train`, `validation`, `test`": schemas.curated_schema(["NAME"]),
    "curate: `rejects`": schemas.EXCLUDED,
}


def kind(field: pa.Field) -> str:
    if field.type == schemas.IMAGE:
        return "struct<bytes, path>"
    if pa.types.is_fixed_size_list(field.type):
        return f"fixed_size_list<{field.type.value_type}>"
    name = f"list<{field.type.value_type}>" if pa.types.is_list(field.type) else str(field.type)
    return f"{name}, or null" if field.nullable else name


@pytest.mark.parametrize("table", TABLES)
def test_every_column_is_documented_with_its_type(table: str) -> None:
    told = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", SECTIONS[table], re.M)
    assert {name: type_ for name, type_, _ in told} == {field.name: kind(field) for field in TABLES[table]}
    assert all(len(meaning) > 3 for *_, meaning in told)


def test_no_table_is_forgotten() -> None:
    """Every schema of pahi.artifacts.schemas has a section."""
    known = {id(schema) for schema in TABLES.values()}
    assert [n for n, s in vars(schemas).items() if isinstance(s, pa.Schema) and id(s) not in known] == []


@pytest.mark.parametrize("server", ["moto", "rclone"])
def test_the_snippets_run_on_s3(
    s3_server: str,
    server: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In order, in one Python, as a reader would paste them; only the name of the bucket is another one."""
    url = s3_server if server == "moto" else request.getfixturevalue("rclone")[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    s3fs.S3FileSystem.clear_instance_cache()
    request.addfinalizer(s3fs.S3FileSystem.clear_instance_cache)
    bucket = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=bucket)
    ctx = world(f"s3://{bucket}/pahi", tmp_path)
    (output,), _ = generate.run(ctx, ingest.chain(ctx))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    s3fs.S3FileSystem.clear_instance_cache()
    snippets = re.findall(r"^```python\n(.*?)^```", DOC, re.S | re.M)
    assert len(snippets) == 5
    scope: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet.replace("s3://my-bucket/pahi/demo/", f"s3://{bucket}/pahi/small/"), scope)
    rows = output.read("images")
    assert os.path.getsize(tmp_path / "first.png") > 100
    assert scope["row"]["image"].size == (16, 16)  # type: ignore[index]
    assert len(scope["rows"]) == rows.num_rows  # type: ignore[arg-type]
    control = sum(arm == "standard" for arm in rows["arm"].to_pylist())
    uplift = scope["uplift"].fetchall()  # type: ignore[attr-defined]
    assert sorted((name, pairs) for name, _, pairs in uplift) == [
        (name, control) for name in ("clip_gamma", "image_beta", "pick_alpha")
    ]
    assert scope["mu"].shape[1:] == (4, 4, 4)  # type: ignore[attr-defined]
    assert str(rows["prompt"][0]) in capsys.readouterr().out
    for name in duckdb.list_filesystems():
        if "s3" in name:  # it leads to this test's server
            duckdb.unregister_filesystem(name)
