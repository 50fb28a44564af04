"""A fake Hub: a real HTTP server on loopback with repositories, a file host, and faults on demand.

It answers search, info, tree and resolve like the Hub (huggingface_hub's own client works with it), redirects large
files to the second host, and can stall, cut, corrupt, report wrong lengths, refuse ranges, or change a file in transit.
Run as a program it serves one large model, for measuring: `python -m tests.core.hub.fake_hub MEBIBYTES FILES`.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback import Loopback

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".onnx", ".pth")
CHUNK = 1 << 16


@dataclass(frozen=True)
class Repo:
    """A repository; `files` by path. `gated`: requires a token that is one of `allowed`."""

    id: str
    files: Mapping[str, bytes]
    gated: bool = False
    private: bool = False
    allowed: tuple[str, ...] = ()
    downloads: int = 100
    tags: tuple[str, ...] = ("license:apache-2.0", "text-generation")
    parameters: Mapping[str, int] = field(default_factory=lambda: {"BF16": 1000})

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(repr([(path, oid(data)) for path, data in self.files.items()]).encode()).hexdigest()


@dataclass(frozen=True)
class Fault:
    """A fault in requests whose path contains `path`, `times` times, after `skip` good ones.

    `kind`: cut (close after `at` bytes of the body), stall (silent after `at` bytes, for `seconds`), flip (the byte at
    `at` of the file), status (`code` with `headers`), length (Content-Length is `by` too large), nonsense (it is not a
    number), no_range, html (a sign-in page), run (call `action` after `at` bytes of the body, then close).
    """

    path: str
    kind: str
    times: int = 1
    skip: int = 0
    at: int = 0
    by: int = 0
    seconds: float = 5.0
    code: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    action: Callable[[], None] = lambda: None
    where: str = "both"


@dataclass(frozen=True)
class Seen:
    """A request: its host ("hub" or "files"), path with query, headers in lower case."""

    host: str
    path: str
    headers: Mapping[str, str]


@lru_cache(maxsize=512)
def oid(data: bytes) -> str:
    """Return git's object name of a file."""
    running = hashlib.sha1(b"blob %d\0" % len(data))
    running.update(data)
    return running.hexdigest()


@lru_cache(maxsize=512)
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def safetensors(tensors: Mapping[str, tuple[int, ...]], seed: int = 0, padding: int = 0) -> bytes:
    """Return a safetensors file of random bf16 tensors; `padding` makes its header longer."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "padding": " " * padding}}
    start = 0
    for name, shape in tensors.items():
        end = start + 2 * _product(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + random.Random(seed).randbytes(start)


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def model_files(shards: int = 3, rows: int = 64, seed: int = 0) -> dict[str, bytes]:
    """Return the files of a small model as on the Hub: required ones, and duplicates that must not be fetched."""
    files: dict[str, bytes] = {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
        "config.json": json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode(),
        "generation_config.json": b'{"do_sample": false}',
        "tokenizer.json": b'{"model": {}}',
        "tokenizer_config.json": b"{}",
        "pytorch_model.bin": b"pickled",
        "onnx/model.onnx": b"onnx",
        "original/consolidated.00.pth": b"pickled",
        "consolidated.safetensors": safetensors({"x": (8, 8)}),
        "model.Q4_0.gguf": b"GGUF",
    }
    weight_map = {}
    for shard in range(1, shards + 1):
        name = "model.safetensors" if shards == 1 else f"model-{shard:05}-of-{shards:05}.safetensors"
        tensor = f"model.layers.{shard - 1}.mlp.up_proj.weight"
        files[name] = safetensors({tensor: (rows, 512)}, seed=seed * 1000 + shard)
        weight_map[tensor] = name
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    return files


class Double:
    """The Hub and its file host. `repos`, `faults` and `rate` may change at any time; `seen` and `sent` record
    requests."""

    def __init__(self, *repos: Repo, redirect: bool = True, tree_page: int = 1000, user_tokens: tuple[str, ...] = ()):
        self.repos = {repo.id: repo for repo in repos}
        self.old: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.sent: dict[str, list[tuple[int, int]]] = {}
        self.rate: float | None = None
        self.redirect = redirect
        self.tree_page = tree_page
        self.user_tokens = user_tokens
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.servers = [_Server(self, "hub"), _Server(self, "files")]
        self.endpoint, self.files_host = (server.address for server in self.servers)

    def __enter__(self) -> Double:
        for server in self.servers:
            server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for server in self.servers:
            server.__exit__()

    def replace(self, repo: Repo) -> None:
        """Add a new commit of a repository; the old one stays readable under its sha."""
        before = self.repos.get(repo.id)
        if before:
            self.old[repo.id, before.sha] = before
        self.repos[repo.id] = repo

    def force(self, id: str, path: str, data: bytes) -> None:
        """Change a file within the same commit, as no honest server does."""
        repo = self.repos[id]
        changed = replace(repo, files={**repo.files, path: data})
        self.old[id, repo.sha] = changed
        self.repos[id] = changed

    def find(self, id: str, revision: str) -> Repo | None:
        repo = self.repos.get(id)
        if repo is None or revision in ("main", repo.sha):
            return repo
        return self.old.get((id, revision))

    def bytes_sent(self, path: str) -> int:
        """Return the body bytes of one file over all requests, as passed to the network."""
        return sum(end - start for start, end in self.sent.get(path, []))

    def paths(self, host: str = "hub") -> list[str]:
        return [seen.path for seen in self.seen if seen.host == host]

    def take_fault(self, path: str, host: str, *kinds: str) -> Fault | None:
        """Return the next fault for a request, and count it down."""
        with self.lock:
            for position, fault in enumerate(self.faults):
                if fault.kind not in kinds or fault.path not in path or fault.where not in ("both", host):
                    continue
                if fault.skip:
                    self.faults[position] = replace(fault, skip=fault.skip - 1)
                    return None
                self.faults[position : position + 1] = (
                    [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                )
                return fault
        return None


class _Server(Loopback):
    def __init__(self, double: Double, host: str) -> None:
        super().__init__(_Handler)
        self.double = double
        self.host = host


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        return

    @property
    def double(self) -> Double:
        return self.server.double

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.double.seen.append(Seen(self.server.host, self.path, headers))
        if fault := self.double.take_fault(self.path, self.server.host, "status", "html"):
            if fault.kind == "html":
                self._answer(200, b"<html>Please sign in</html>", {"Content-Type": "text/html"})
            else:
                self._answer(fault.code, b"", fault.headers)
            return
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        query = parse_qs(address.query)
        if parts == ["api", "models"]:
            self._search(query)
        elif parts[:2] == ["api", "models"]:
            self._api(parts[2:], query)
        elif "resolve" in parts:
            self._resolve(parts)
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _search(self, query: dict[str, list[str]]) -> None:
        text = query.get("search", [""])[0].lower()
        found = [repo for repo in self.double.repos.values() if text in repo.id.lower()]
        start, limit = int(query.get("cursor", ["0"])[0]), int(query.get("limit", ["30"])[0])
        links = {}
        if start + limit < len(found):
            following = f"/api/models?search={text}&limit={limit}&cursor={start + limit}"
            links["Link"] = f'<{self.double.endpoint}{following}>; rel="next"'
        self._json([self._entry(repo) for repo in found[start : start + limit]], links)

    def _api(self, parts: list[str], query: dict[str, list[str]]) -> None:
        split = next((at for at, part in enumerate(parts) if part in ("revision", "tree")), len(parts))
        id, kind, rest = "/".join(parts[:split]), parts[split : split + 1], parts[split + 1 :]
        repo = self.double.find(id, rest[0] if rest else "main")
        if id not in self.double.repos or (repo and repo.private and not self._allowed(repo)):
            self._answer(404 if self._token() else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif repo is None:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif kind == ["tree"]:
            self._tree(repo, int(query.get("cursor", ["0"])[0]))
        else:
            self._json(self._entry(repo))

    def _tree(self, repo: Repo, start: int) -> None:
        entries = []
        for path, data in list(repo.files.items())[start : start + self.double.tree_page]:
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid(data)}
            if path.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        links = {}
        if start + self.double.tree_page < len(repo.files):
            following = f"/api/models/{repo.id}/tree/{repo.sha}?cursor={start + self.double.tree_page}"
            links["Link"] = f'<{self.double.endpoint}{following}>; rel="next"'
        self._json(entries, links)

    def _resolve(self, parts: list[str]) -> None:
        split = parts.index("resolve")
        id, revision, path = "/".join(parts[:split]), parts[split + 1], "/".join(parts[split + 2 :])
        repo = self.double.find(id, revision)
        if repo is None:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        if (repo.gated or repo.private) and self.server.host == "hub" and not self._allowed(repo):
            self._answer(403 if self._token() else 401, b"", {"X-Error-Code": "GatedRepo"})
            return
        if path not in repo.files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = repo.files[path]
        is_lfs = path.endswith(LFS_SUFFIXES)
        etag = sha256(data) if is_lfs else oid(data)
        headers = {"X-Repo-Commit": repo.sha, "ETag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        if is_lfs and self.double.redirect and self.server.host == "hub":
            location = f"{self.double.files_host}{self.path}"
            self._answer(302, b"", {**headers, "X-Linked-Etag": f'"{etag}"', "ETag": '"pointer"', "Location": location})
        else:
            self._file(path, data, headers if self.server.host == "hub" else {})

    def _file(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        start, end, status = 0, len(data), 200
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and not self.double.take_fault(self.path, self.server.host, "no_range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(len(data), int(last) + 1 if last else len(data)), 206
            if start >= len(data):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        if fault := self.double.take_fault(self.path, self.server.host, "flip"):
            data = data[: fault.at] + bytes([data[fault.at] ^ 1]) + data[fault.at + 1 :]
        longer = self.double.take_fault(self.path, self.server.host, "length")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        nonsense = self.double.take_fault(self.path, self.server.host, "nonsense")
        self.send_header("Content-Length", "many" if nonsense else str(end - start + (longer.by if longer else 0)))
        self.end_headers()
        if self.command == "GET":
            self._body(path, memoryview(data)[start:end], start)
        self.close_connection = self.close_connection or longer is not None

    def _body(self, path: str, data: memoryview, start: int) -> None:
        fault = self.double.take_fault(self.path, self.server.host, "cut", "stall", "run")
        stop_at = min(fault.at, len(data)) if fault else len(data)
        self._send(path, data[:stop_at], start)
        if fault is None:
            return
        if fault.kind == "cut":
            self.close_connection = True
            return
        if fault.kind == "stall":
            self.double.over.wait(fault.seconds)
            self.close_connection = True
            return
        fault.action()
        self.close_connection = True

    def _send(self, path: str, data: memoryview, start: int) -> None:
        sent = 0
        chunk = min(CHUNK, round(self.double.rate / 4)) if self.double.rate else 1 << 20
        with self.double.lock:
            spans = self.double.sent.setdefault(path, [])
            spans.append((start, start))
            number = len(spans) - 1
        while sent < len(data):
            part = data[sent : sent + chunk]
            spans[number] = (start, start + sent + len(part))  # before the client has all: this thread may be late
            try:
                self.wfile.write(part)
            except OSError:
                spans[number] = (start, start + sent)
                raise
            sent += len(part)
            if rate := self.double.rate:  # a test may set it meanwhile
                self.double.over.wait(chunk / rate)

    def _entry(self, repo: Repo) -> dict[str, Any]:
        return {
            "id": repo.id, "sha": repo.sha, "downloads": repo.downloads, "likes": 7, "gated": repo.gated and "auto",
            "private": repo.private, "lastModified": "2025-01-01T00:00:00.000Z", "pipeline_tag": "text-generation",
            "tags": list(repo.tags), "safetensors": {"parameters": dict(repo.parameters), "total": 1000},
            "siblings": [{"rfilename": path} for path in repo.files],
        }  # fmt: skip

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _allowed(self, repo: Repo) -> bool:
        return bool(self._token()) and self._token() in repo.allowed

    def _json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def double(*repos: Repo, **settings: Any) -> Iterator[Double]:
    with Double(*repos, **settings) as running:
        yield running


def main() -> None:
    mebibytes, count = int(sys.argv[1]), int(sys.argv[2])
    files = model_files(shards=count)
    block = random.Random(1).randbytes(1 << 20)
    for number, name in enumerate(sorted(name for name in files if name.startswith("model-"))):
        files[name] = number.to_bytes(4, "big") + block * (mebibytes // count)
    with Double(Repo("big/model", files)) as running:
        print(running.endpoint, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
