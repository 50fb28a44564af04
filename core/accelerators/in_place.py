"""Host memory as tensors of a device that shares it (Apple's GPUs and integrated graphics), so that nothing is copied.

torch has no function for this, but it imports tensors through DLPack, a public protocol of array libraries: the capsule
of a host tensor is given the address by which the device knows the same memory, and imported as a tensor of the device.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

NAME = b"dltensor"
"""The name of a capsule that was not imported yet."""
METAL = "/System/Library/Frameworks/Metal.framework/Metal"
OBJECTIVE_C = "/usr/lib/libobjc.A.dylib"
SHARED_STORAGE = 0
"""MTLResourceStorageModeShared."""


class _Device(ctypes.Structure):
    """DLPack's DLDevice."""

    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _Managed(ctypes.Structure):
    """DLPack's DLManagedTensor (dlpack.h)."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device", _Device), ("dimensions", ctypes.c_int32), ("type", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
        ("owner", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    )  # fmt: skip


def by_address(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor (...) as one of a device that uses the host's addresses; it keeps the host's alive.

    Raises RuntimeError if torch refuses it.
    """
    capsule, managed = _exported(tensor)
    managed.device = _device_of(device)
    found: Tensor = from_dlpack(capsule)
    return found


def by_metal(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a contiguous host tensor (...) as one of Apple's GPU, which addresses memory by buffers of entire pages.

    It keeps the host's alive. Raises RuntimeError if Metal refuses it.
    """
    first = tensor.data_ptr()
    begin = first // mmap.PAGESIZE * mmap.PAGESIZE
    nbytes = -(-(first + tensor.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE - begin
    capsule, managed = _exported(tensor.view(-1).view(torch.uint8))
    managed.data = _metal_buffer(begin, nbytes)
    managed.device = _device_of(device)
    managed.deleter = ctypes.cast(_releasing(managed.deleter), ctypes.c_void_p).value
    shape = (ctypes.c_int64 * 1)(nbytes)  # read when imported; the tensor's own must not change
    managed.shape = shape
    pages: Tensor = from_dlpack(capsule)
    return pages[first - begin : first - begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def _exported(tensor: Tensor) -> tuple[Any, _Managed]:
    """Return a capsule of a tensor, and the record in it, which is valid until the capsule is imported."""
    capsule = to_dlpack(tensor)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return capsule, _Managed.from_address(pointer(capsule, NAME))


def _device_of(device: torch.device) -> _Device:
    """Return DLPack's name of a device, as torch exports it."""
    capsule, managed = _exported(torch.empty(0, device=device))
    found = _Device(managed.device.kind, managed.device.index)
    del capsule  # `managed` was in it
    return found


def _metal_buffer(begin: int, nbytes: int) -> int:
    """Return a new Metal buffer over pages of this process. Raises RuntimeError if there is none."""
    objective_c = ctypes.CDLL(OBJECTIVE_C)
    objective_c.sel_registerName.restype = ctypes.c_void_p
    selector = objective_c.sel_registerName(b"newBufferWithBytesNoCopy:length:options:deallocator:")
    # Objective-C's calls have no variable arguments: each is called with exactly its own types.
    word, number = ctypes.c_void_p, ctypes.c_ulong
    make = ctypes.CFUNCTYPE(word, word, word, word, number, number, word)(("objc_msgSend", objective_c))
    buffer: int | None = make(_metal_device(), selector, begin, nbytes, SHARED_STORAGE, None)
    if buffer is None:
        raise RuntimeError(f"Metal makes no buffer of {nbytes} bytes of this program's memory")
    return buffer


@cache
def _metal_device() -> int | None:
    make = ctypes.CDLL(METAL).MTLCreateSystemDefaultDevice
    make.restype = ctypes.c_void_p
    found: int | None = make()
    return found


@cache
def _releasing(deleter: int) -> Any:
    """Return a DLPack deleter that releases the Metal buffer and calls `deleter`. It is kept: torch calls it later."""
    kind: Callable[..., Any] = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    release, rest = ctypes.CDLL(OBJECTIVE_C).objc_release, kind(deleter)
    release.argtypes, release.restype = (ctypes.c_void_p,), None

    def delete(managed: int) -> None:
        release(_Managed.from_address(managed).data)
        rest(managed)

    return kind(delete)
