"""Small wheels, and a real HTTP server on loopback that lists and serves them like PyTorch's index."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from urllib.parse import quote, unquote

from core.gpu_runtime.start import own_torch
from core.graphics.builds import BUILDS, Build
from core.graphics.card import GraphicsCard
from tests.loopback import Loopback

WORKS = """
import types
class Tensor:
    def __getitem__(self, at): return self
    __add__ = __mul__ = __mod__ = __matmul__ = lambda self, other: self
    def to(self, device):
        assert device == {device!r}
        return self
    def cpu(self): return self
float32, __version__ = None, "fake"
arange = lambda *a, **k: Tensor()
equal = lambda a, b: True
accelerator = types.SimpleNamespace(current_accelerator=lambda check_available: {device!r})
get_device_module = lambda device: types.SimpleNamespace(get_device_name=lambda: "Fake Card")
"""
LIKE_A_LINKER = """
from pathlib import Path
if not (Path(__file__).parent / "lib" / "../../../.." / "libsycl.so.9").exists():
    raise ImportError("libsycl.so.9: cannot open shared object file")
"""
"""A module that checks where the relative paths inside of torch's Intel libraries lead."""
PADDING = bytes(range(256)) * 4096
"""Content of a library of one megabyte, stored uncompressed, so that cuts happen in the middle of it."""


def wheel(name: str, version: str, files: Mapping[str, bytes], requires: Sequence[str] = ()) -> dict[str, bytes]:
    """Return a wheel by its file name."""
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
XPU_NEEDS = (
    "mkl==2026.0.0", "tcmlib==1.5.0", "intel-sycl-rt==2026.0.0", "onemkl-sycl-blas==2026.0.0", "sympy>=1.13",
    "triton-xpu==3.7.2", 'impi-rt==2021.18.0; platform_system == "Plan9"',
)  # fmt: skip


@dataclass(frozen=True)
class Offer:
    """A build of torch for `card` as offered by an index.

    `library`: a large wheel, whose content is installed at `lies`; `left`: wheels that are offered but not wanted.
    """

    tag: str
    device: str
    card: GraphicsCard
    library: str
    lies: str
    left: frozenset[str] = frozenset()
    name: str = "Fake Card"

    @property
    def version(self) -> str:
        return f"{own_torch()}+{self.tag}"

    @property
    def build(self) -> Build:
        return next(build for build in BUILDS if build.tag == self.tag)

    def torch(self) -> str:
        """Return the source of a working torch."""
        return WORKS.format(device=self.device) + (LIKE_A_LINKER if self.tag == "xpu" else "")

    def wheels(self, torch: str = "") -> dict[str, bytes]:
        """Return the wheels that the index serves, with `torch` as torch's source."""
        files = {"torch/__init__.py": (torch or self.torch()).encode(), "torch/include/ATen/a.h": b""}
        return _WHEELS[self.tag](self.version, {**files, "torch/lib/libtorch.so": b""})


def _cuda(version: str, torch: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return torch and two NVIDIA libraries, one of them required through a metapackage."""
    return {
        **wheel("torch", version, torch, TORCH_NEEDS),
        **wheel("cuda_toolkit", "13.0.3", {}, TOOLKIT_NEEDS),
        **wheel("nvidia_cublas", "13.1.1", {"nvidia/cu13/lib/libcublas.so": PADDING}),
        **wheel("nvidia_cublas", "13.0.9", {}),
        **wheel("nvidia_cudnn_cu13", "9.20.0.48", {"nvidia/cudnn/lib/libcudnn.so": b"cudnn"}),
    }


def _rocm(version: str, torch: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return torch alone, which contains AMD's libraries."""
    return wheel("torch", version, {**torch, "torch/lib/librocblas.so": PADDING}, ("triton-rocm==3.7.1", "sympy"))


def _xpu(version: str, torch: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return torch and Intel's libraries, which are installed beside the packages."""
    sycl = {"lib/libsycl.so.9": PADDING, "Library/bin/sycl9.dll": b"sycl", "include/sycl.hpp": b""}
    return {
        **wheel("torch", version, torch, XPU_NEEDS),
        **wheel("intel_sycl_rt", "2026.0.0", _data("intel_sycl_rt-2026.0.0", sycl), ("tcmlib>=1",)),
        **wheel("onemkl_sycl_blas", "2026.0.0", _data("onemkl_sycl_blas-2026.0.0", {"lib/libmkl_sycl_blas.so.6": b""}),
                ("mkl<2027,>=2026", "tbb==2023.*")),
        **wheel("mkl", "2026.0.0", _data("mkl-2026.0.0", {"lib/libmkl_core.so.3": b"mkl"})),
        **wheel("mkl", "2026.1.0", {}),
        **wheel("tbb", "2023.0.0", _data("tbb-2023.0.0", {"lib/libtbb.so.12": b"tbb"})),
        **wheel("tcmlib", "1.5.0", {"tcmlib-1.5.0.data/purelib/tcm.py": b"", "tcmlib-1.5.0.data/scripts/tcm": b""}),
        **wheel("tcmlib", "1.6.0", {}),
    }  # fmt: skip


def _data(name: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.data/data/{path}": content for path, content in files.items()}


_WHEELS = {"cu130": _cuda, "rocm7.2": _rocm, "xpu": _xpu}
PACKAGES = "lib/python/site-packages"
CUDA = Offer(
    "cu130", "cuda", GraphicsCard("NVIDIA", "Fake Card", "8.9", "580.65.06"), "nvidia_cublas-13.1.1-py3-none-any.whl",
    f"{PACKAGES}/nvidia/cu13/lib/libcublas.so", frozenset({"nvidia_cublas-13.0.9-py3-none-any.whl"}),
)  # fmt: skip
ROCM = Offer(
    "rocm7.2", "cuda", GraphicsCard("AMD", "Fake Card", "gfx1100", "6.14.0"),
    f"torch-{own_torch()}+rocm7.2-py3-none-any.whl", f"{PACKAGES}/torch/lib/librocblas.so",
)  # fmt: skip
XPU = Offer(
    "xpu", "xpu", GraphicsCard("Intel", "Fake Card", "Battlemage", "32.0.101.8860"),
    "intel_sycl_rt-2026.0.0-py3-none-any.whl", "lib/libsycl.so.9",
    frozenset({"mkl-2026.1.0-py3-none-any.whl", "tcmlib-1.6.0-py3-none-any.whl"}),
)  # fmt: skip
OFFERS = (CUDA, ROCM, XPU)
VERSION = CUDA.version


class Index:
    """Serves an offer. `cut`: name -> bytes after which the next response ends; `flipped`: sent with a wrong byte."""

    def __init__(self, offer: Offer = CUDA) -> None:
        self.tag, self.wheels = offer.tag, offer.wheels()
        self.cut: dict[str, int] = {}
        self.flipped: set[str] = set()
        self.ranges: list[tuple[str, str]] = []
        self._server = Loopback(_handler(self))
        self.address = self._server.address
        self.pages = (f"{self.address}/whl/{{tag}}", f"{self.address}/simple")

    def __enter__(self) -> Index:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def page(self, index: str, project: str) -> str | None:
        """Return a project's page: torch's on PyTorch's index, all others on PyPI."""
        if (index == self.tag) is not (project == "torch"):
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
                # The response of the storage behind PyTorch's index for missing files.
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
