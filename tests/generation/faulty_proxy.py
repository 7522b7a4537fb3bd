"""An HTTP proxy in front of a real S3 server that refuses, resets, loses answers, tears them and falls silent."""

import http.client
import itertools
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>not now</Message></Error>"
FAULTS = ("503", "500", "429", "reset before", "reset after", "torn", "stall")


class FaultyProxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str, share: float, seed: int = 0, stall: float = 3.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.share, self.stall, self.random = share, stall, random.Random(seed)
        self.kinds = itertools.cycle(FAULTS)
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self.away_until = 0.0
        self.outages: list[tuple[int, float]] = []  # after so many requests, away for so many seconds
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fate(self) -> str:
        with self.lock:
            self.requests += 1
            if self.outages and self.requests >= self.outages[0][0]:
                self.away_until = time.monotonic() + self.outages.pop(0)[1]
            fault = ""
            if time.monotonic() < self.away_until:
                fault = "away"
            elif self.random.random() < self.share:
                fault = next(self.kinds)
            self.faults[fault or "none"] += 1
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client hung up, which is what these tests are about


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fate = self.server.fate()
        if fate in ("reset before", "away"):
            return self._reset()
        if fate == "stall":
            time.sleep(self.server.stall)
            return self._reset()
        if fate.isdigit():
            code = {"503": b"SlowDown", "500": b"InternalError", "429": b"TooManyRequests"}[fate]
            return self._answer(int(fate), [("Content-Type", "application/xml")], ERROR % code)
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect", "transfer-encoding"):
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if fate == "reset after":
            return self._reset()
        hidden = ("transfer-encoding", "connection", "content-length", "date", "server")
        headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in hidden]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        return self._answer(answer.status, headers, data, torn=fate == "torn", length=length)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, torn: bool = False, length: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if torn else data)
        self.wfile.flush()
        if torn:
            self._reset()

    def _reset(self) -> None:
        """Hangs up with a RST, as a peer that dies does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass
