"""Small wheels, and a real HTTP server on loopback that lists and serves them as PyTorch's index does."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

from core.gpu_runtime.start import own_torch

VERSION = f"{own_torch()}+cu130"
WORKS = """
import types
class Tensor:
    def __getitem__(self, at): return self
    __add__ = __mul__ = __mod__ = __matmul__ = lambda self, other: self
    def to(self, device): return self
    def cpu(self): return self
float32, __version__ = None, "fake"
arange = lambda *a, **k: Tensor()
equal = lambda a, b: True
accelerator = types.SimpleNamespace(current_accelerator=lambda check_available: "cuda")
get_device_module = lambda device: types.SimpleNamespace(get_device_name=lambda: "Fake Card")
"""
PADDING = bytes(range(256)) * 4096
"""A library of a megabyte, stored as it is: cuts happen in the middle of it."""


def wheel(name: str, version: str, files: Mapping[str, bytes], requires: Sequence[str] = ()) -> dict[str, bytes]:
    """A wheel by its file's name."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{name}-{version}.dist-info/METADATA", metadata(name, version, requires))
    return {f"{name}-{version}-py3-none-any.whl": packed.getvalue()}


def metadata(name: str, version: str, requires: Sequence[str]) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    return "\n".join([*lines, *(f"Requires-Dist: {wanted}" for wanted in requires), "", ""])


TORCH_NEEDS = (
    "cuda-toolkit[cublas]==13.0.3", "nvidia-cudnn-cu13==9.20.0.48", "sympy>=1.13", "triton==3.7.1",
    'nvidia-elsewhere==1; platform_system == "Plan9"',
)  # fmt: skip
TOOLKIT_NEEDS = ("nvidia-cublas==13.1.*; extra == 'cublas'", "nvidia-npp==13.0.*; extra == 'npp'")


def runtime_wheels(torch: str = WORKS) -> dict[str, bytes]:
    """What a runtime needs: torch, and two of NVIDIA's libraries behind a package of names only."""
    return {
        **wheel("torch", VERSION, {"torch/__init__.py": torch.encode(), "torch/include/ATen/a.h": b""}, TORCH_NEEDS),
        **wheel("cuda_toolkit", "13.0.3", {}, TOOLKIT_NEEDS),
        **wheel("nvidia_cublas", "13.1.1", {"nvidia/cu13/lib/libcublas.so": PADDING}),
        **wheel("nvidia_cublas", "13.0.9", {}),
        **wheel("nvidia_cudnn_cu13", "9.20.0.48", {"nvidia/cudnn/lib/libcudnn.so": b"cudnn"}),
    }


class Index:
    """Serves `wheels`. `cut`: name -> bytes after which the next answer ends; `flipped`: sent with a wrong byte."""

    def __init__(self, wheels: Mapping[str, bytes]) -> None:
        self.wheels = dict(wheels)
        self.cut: dict[str, int] = {}
        self.flipped: set[str] = set()
        self.ranges: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.pages = (f"{self.address}/whl/{{tag}}", f"{self.address}/simple")

    def __enter__(self) -> Index:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def page(self, index: str, project: str) -> str | None:
        """torch on PyTorch's index, all else on Python's."""
        if (index == "cu130") is not (project == "torch"):
            return None
        found = [file for file in self.wheels if file.partition("-")[0].replace("_", "-") == project]
        links = (f'<a href="/files/{quote(file)}#sha256={sha256(self.wheels[file])}">{file}</a>' for file in found)
        return "<!DOCTYPE html><html><body>" + "<br/>".join(links) + "</body></html>"

    def body(self, path: str) -> bytes | None:
        kind, _, rest = path.strip("/").partition("/")
        if kind == "files":
            return self._file(rest)
        index, _, project = rest.rpartition("/") if kind == "whl" else ("", "", rest)
        page = self.page(index, project)
        return None if page is None else page.encode()

    def _file(self, file: str) -> bytes | None:
        if file.endswith(".metadata"):
            packed = self.wheels.get(file.removesuffix(".metadata"))
            if packed is None:
                return None
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                return archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA")))
        content = self.wheels.get(file)
        if content is not None and file in self.flipped:
            return content[:-1] + bytes([content[-1] ^ 1])
        return content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _handler(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path)
            content = index.body(path)
            if content is None:
                # As the storage behind PyTorch's index says of what it does not have.
                self.send_error(403)
                return
            self._send(path.rpartition("/")[2], content)

        def _send(self, file: str, content: bytes) -> None:
            asked = self.headers.get("Range", "")
            start, _, end = asked.removeprefix("bytes=").partition("-")
            part = content[int(start or 0) : int(end) + 1 if end else None]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(part)))
            if asked:
                index.ranges.append((file, asked))
                self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(part[: index.cut.pop(file, None)] if end == "" else part)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
