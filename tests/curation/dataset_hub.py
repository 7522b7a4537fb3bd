"""A server that speaks as much of the Hub's API as its client uses to write a dataset, and can be made to fail."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_mine"


@dataclass
class Hub:
    """Datasets as files by name. `break_after`: so many large files arrive, then each connection breaks."""

    address: str = ""
    datasets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    break_after: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/main", path):
            files = self.hub.datasets.get(match[1])
            if files is None:
                return self.answer({"error": "none"}, 404, {"X-Error-Code": "RepoNotFound"})
            return self.answer([self.entry(name, data) for name, data in files.items()])
        return self.answer({"error": path}, 404)

    def entry(self, name: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        found: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
        if name.endswith(".parquet"):
            digest = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
        return found

    def do_PUT(self) -> None:
        digest = self.path.rpartition("/")[2]
        hub = self.hub
        with hub.lock:
            if hub.break_after is not None and len(hub.uploads) >= hub.break_after:
                self.close_connection = True
                self.connection.close()
                return
            data = self.body()
            assert hashlib.sha256(data).hexdigest() == digest
            hub.blobs[digest] = data
            hub.uploads.append(digest)
        self.answer({})

    def do_POST(self) -> None:
        path, data = unquote(urlsplit(self.path).path), self.body()
        if path == "/api/validate-yaml":
            header = yaml.safe_load(json.loads(data)["content"].split("---")[1])
            missing = [{"message": f"{n} is missing"} for n in ("license", "configs") if n not in header]
            return self.answer({"errors": missing, "warnings": []}, 400 if missing else 200)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            wanted = json.loads(data)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if name.split("/")[0] != "me":
                return self.answer({"error": "You don't have the rights"}, 403)
            url = {"url": f"{self.hub.address}/datasets/{name}"}
            if name in self.hub.datasets:
                return self.answer(url | {"error": "You already created this dataset"}, 409)
            self.hub.datasets[name], self.hub.private[name] = {}, wanted.get("visibility") == "private"
            return self.answer(url)
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(data)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".parquet") else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            return self.answer({"files": modes})
        if re.fullmatch(r"/datasets/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = []
            for o in json.loads(data)["objects"]:
                entry: dict[str, Any] = {"oid": o["oid"], "size": o["size"]}
                if o["oid"] not in self.hub.blobs:
                    entry["actions"] = {"upload": {"href": f"{self.hub.address}/upload/{o['oid']}", "header": {}}}
                objects.append(entry)
            return self.answer({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/commit/main", path):
            return self.commit(self.hub.datasets[match[1]], data)
        return self.answer({"error": path}, 404)

    def commit(self, files: dict[str, bytes], data: bytes) -> None:
        names = []
        for line in data.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            if item["key"] != "header":
                names.append(value["path"])
        self.hub.commits.append(names)
        oid = hashlib.sha1(str(len(self.hub.commits)).encode()).hexdigest()
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.address}/datasets/me/x/commit/{oid}"})

    def answer(
        self, value: Any, status: int = 200, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, content in ({"Content-Type": kind, "Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, content)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve() -> Iterator[Hub]:
    """The server's state, while it runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
