"""A server that speaks as much of the Hub's API as fetching and pushing a model take, and can be made to fail."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LFS_FROM = 5000  # bytes; the Hub keeps large files apart from git, named by their sha256


@dataclass
class Repository:
    """Files by commit, and branches. `breaks`: how often the connection ends halfway; `damaged`: a bit is flipped."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    gated: bool = False
    breaks: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)


def commit_name(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def read_folder(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def digest(data: bytes) -> str:
    if len(data) >= LFS_FROM:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: dict[str, Repository]
    uploaded: dict[str, bytes]  # large files by their sha256, until a commit names them

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        if match is None:
            return self.fail(404, "EntryNotFound")
        repository = self.repositories.get(match[1])
        if repository is None:
            return self.fail(404, "RepoNotFound")
        repository.requests.append(f"{self.command} {path}")
        revision = (match[3] if api else match[2]) or "main"
        commit = repository.branches.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            return self.fail(404, "RevisionNotFound")
        if repository.gated and file:
            return self.fail(403, "GatedRepo")
        if file:
            return self.send_file(repository, commit, files, match[3])
        if match[2] == "tree":
            return self.send_json([self.entry(name, data) for name, data in files.items()])
        return self.send_json({"id": match[1], "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        here = f"http://{self.headers['Host']}"
        if path == "/api/validate-yaml":
            header = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.S)
            if header is None or not isinstance(yaml.safe_load(header[1]), dict):
                return self.fail(400, "BadYaml")
            return self.send_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories.setdefault(name, Repository({commit_name("empty"): {}}, {"main": commit_name("empty")}))
            return self.send_json({"url": f"{here}/{name}"})
        if path.endswith(".git/info/lfs/objects/batch"):
            found = [
                {**entry, "actions": {"upload": {"href": f"{here}/upload/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return self.send_json({"transfer": "basic", "objects": found})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)", path)
        if match is None or match[1] not in self.repositories:
            return self.fail(404, "RepoNotFound")
        if match[2] == "preupload":
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LFS_FROM else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.send_json({"files": modes})
        repository = self.repositories[match[1]]
        files = dict(repository.commits[repository.branches[match[3]]])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.uploaded[line["value"]["oid"]]
        commit = commit_name(body.decode())
        repository.commits[commit], repository.branches[match[3]] = files, commit
        return self.send_json({"commitUrl": f"{here}/{match[1]}/commit/{commit}", "commitOid": commit})

    def do_PUT(self) -> None:
        # The client sends a file without saying how long it is.
        data = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.rpartition("/")[2]
        if hashlib.sha256(data).hexdigest() != name:
            return self.fail(400, "BadUpload")
        self.uploaded[name] = data
        return self.send_json({})

    def entry(self, name: str, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
        if len(data) >= LFS_FROM:
            found["oid"] = commit_name(name)
            found["lfs"] = {"oid": digest(data), "size": len(data), "pointerSize": 134}
        return found

    def send_file(self, repository: Repository, commit: str, files: dict[str, bytes], name: str) -> None:
        if name not in files or name in repository.missing:
            return self.fail(404, "EntryNotFound", {"X-Repo-Commit": commit})
        data, tag = files[name], digest(files[name])
        if name in repository.damaged:
            data = bytes([data[0] ^ 1]) + data[1:]
        start = 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{tag}"')
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if repository.breaks.get(name, 0) > 0:
            repository.breaks[name] -= 1
            self.wfile.write(data[start : (start + len(data)) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (
            {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"} | (headers or {})
        ).items():
            self.send_header(key, value)
        self.end_headers()


@contextmanager
def hub(repositories: dict[str, Repository]) -> Iterator[str]:
    """The server's address, while it runs."""
    handler = type("HubHandler", (Handler,), {"repositories": repositories, "uploaded": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
