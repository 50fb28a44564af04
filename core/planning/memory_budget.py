"""The VRAM and RAM that a placement takes besides its shares, and its limits: margins, workspace, host copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.planning.capture import MOST_ROWS, ROWS_TOGETHER, steady_layers
from core.planning.cost_model import GroupClass, Residents
from core.spec import BUCKET_LIMITS, FEW, SNAPSHOTS, Budget, Format, Gpu, Hardware, ModelSpec, Ring
from core.units import GIB, MIB

# cuBLAS has a workspace of its own; the allocator rounds large blocks up to 2 MiB, one per linear.
LIBRARY_WORKSPACE, BLOCK_SLACK = 64 * MIB, MIB
DEQUANTISED = 64 * MIB
# What stays unused of the blocks of 2 MiB in which torch's allocator takes memory for graphs.
GRAPH_SLACK = 8 * MIB
# Floats of keys, in several steps, and then of values, as a multiple of both in 8 bits.
WIDENED = 8
AS_IT_LIES = ("cuda", "simulated")
"""Kinds of cards that multiply few input rows with quantised weights without widening them."""
CPU_WORKSPACE = 32 * MIB
PARKED_CONTEXTS, PARKED_SHARE = 3, 0.25


@dataclass(frozen=True)
class HostMemory:
    """The use of RAM.

    `weights`: bytes of our weights in RAM; mapped pages of resident rows are reclaimed if others need memory.
    `from_disk`: bytes that are read again in each pass. `left`: free bytes beyond all weights.
    """

    fits: bool
    weights: int
    from_disk: int
    left: int = 0


def vram_limit(gpu: Gpu, budget: Budget) -> int:
    """Return the bytes of this card that a plan may use."""
    free = max(0, gpu.vram_free - vram_margin(gpu))
    return free if budget.vram is None else min(free, budget.vram)


def vram_margin(gpu: Gpu) -> int:
    """Return the bytes left to others: at least 1 GiB or a tenth of a real card, nothing of a simulated one."""
    return 0 if gpu.simulated else max(GIB, gpu.vram_total // 10)


def ram_limit(hardware: Hardware, budget: Budget) -> int:
    """Return the bytes of RAM that a plan may use."""
    free = max(0, hardware.cpu.ram_free - ram_margin(hardware))
    return free if budget.ram is None else min(free, budget.ram)


def ram_margin(hardware: Hardware) -> int:
    """Return the bytes of RAM left to others."""
    return max(GIB // 2, hardware.cpu.ram_total // 20)


def kv_split(spec: ModelSpec, kv_devices: Sequence[int], context: int, part: float = 1.0) -> tuple[int, int]:
    """Return the bytes of the KV cache for `context` tokens on the GPU, and in RAM.

    `part`: the share of the heads on the GPU, in its layers.
    """
    sizes = [layer.nbytes(context) for layer in spec.kv_layers]
    on_host = sum(size for size, device in zip(sizes, kv_devices, strict=True) if device < 0)
    on_gpu = round(part * (sum(sizes) - on_host))
    return on_gpu, sum(sizes) - on_gpu


def _activations(spec: ModelSpec, chunk: int) -> int:
    """Return the bytes of activations in fp32 for `chunk` tokens, and of the last position's logits."""
    widest = max((item.active * item.rows for item in spec.linears if item.name != spec.head), default=0)
    return chunk * (6 * spec.hidden + 2 * widest) * 4 + 8 * spec.vocab


def gpu_workspace(spec: ModelSpec, format: Format, gpu: Gpu, chunk: int, context: int) -> int:
    """Return the bytes of VRAM for computing: activations, one block of dequantised weights, libraries, graphs."""
    own = 0 if gpu.simulated else LIBRARY_WORKSPACE + BLOCK_SLACK * len(spec.linears)
    few = gpu.kind in AS_IT_LIES and chunk <= BUCKET_LIMITS[FEW]
    scratch = 0 if few or spec.mapped(format) else DEQUANTISED
    largest = max((2 * item.rows * item.columns for item in spec.linears), default=0)
    return _activations(spec, chunk) + min(scratch, largest) + own + graph_bytes(spec, gpu, context)


def graph_bytes(spec: ModelSpec, gpu: Gpu, context: int) -> int:
    """Return the bytes of VRAM for captured work: activations and dequantised states of one layer, which graphs share,
    the results of all in 16 bits, also at gaps in layers, and the parts of the allocator's blocks that stay unused."""
    if not gpu.graphs or not steady_layers(spec):
        return 0
    packed = max((kv.nbytes(context) for kv in spec.kv_layers if kv.recent_bytes), default=0)
    slack = 0 if gpu.simulated else GRAPH_SLACK
    results = 2 * ROWS_TOGETHER * (spec.vocab + spec.layers * spec.hidden)
    return _activations(spec, MOST_ROWS) + WIDENED * packed + results + slack


def weights_on_card(spec: ModelSpec, classes: Sequence[GroupClass], residents: Residents) -> int:
    """Return the bytes of VRAM for resident rows and for tensors that always lie there."""
    shares = zip(classes, residents.whole, residents.part, strict=True)
    rows = sum((whole + (item.count - whole) * part) * item.nbytes for item, whole, part in shares)
    return spec.resident_bytes + round(rows)


def copied_to_card(spec: ModelSpec, classes: Sequence[GroupClass], residents: Residents) -> int:
    """Return the bytes of `weights_on_card` that a card with unified memory needs beside those in RAM, if it reads rows
    in place: single experts change places, and columns are no range of bytes, so these are copied."""
    shares = zip(classes, residents.whole, residents.part, strict=True)
    parts = ((item.count - whole) * part * (item.nbytes if item.chosen else item.after) for item, whole, part in shares)
    return spec.resident_bytes + round(sum(parts))


def reads_in_place(spec: ModelSpec, format: Format, gpu: Gpu) -> bool:
    """Return whether the card reads weights in this format where they lie in RAM."""
    # Files have FP8 weights at any address, but kernels for cards read aligned blocks.
    stored = {spec.storage(linear, format) for linear in spec.linears}
    return gpu.unified and gpu.in_place and "fp8" not in stored


def room_for_weights(
    spec: ModelSpec, format: Format, hardware: Hardware, budget: Budget, kv_bytes: int, chunk: int, ring: Ring
) -> int:
    """Return the bytes of RAM left for text weights; negative if not even the rest fits."""
    return ram_limit(hardware, budget) - kv_bytes - host_workspace(spec, format, chunk) - ring.total - spec.sight_bytes


def host_memory(
    spec: ModelSpec,
    format: Format,
    classes: Sequence[GroupClass],
    residents: Residents,
    room: int,
) -> HostMemory:
    """Use `room` bytes of RAM for all weights, or for non-resident ones only, or else read them from disk."""
    total = sum(item.count * item.nbytes for item in classes)
    rest = sum(
        round((item.count - whole) * (1 - part) * item.nbytes)
        for item, whole, part in zip(classes, residents.whole, residents.part, strict=True)
    )
    if spec.mapped(format):
        # Pages are used cyclically, so those that do not fit evict the next ones needed: twice the overflow is read
        # again.
        missing = min(rest, 2 * max(0, rest - room))
        return HostMemory(room >= 0, max(0, min(total, room)), missing, max(0, room - total))
    held = total if total <= room else rest
    return HostMemory(rest <= room, held, 0, max(0, room - held))


def parked_prefixes(spec: ModelSpec, context: int, left: int) -> int:
    """Return the bytes of RAM for the parked KV prefixes of other conversations: a share of the rest."""
    return min(PARKED_CONTEXTS * spec.kv_bytes(context), int(left * PARKED_SHARE))


def host_workspace(spec: ModelSpec, format: Format, chunk: int) -> int:
    """Return the bytes of RAM for computing, for snapshots of recurrent states, and for transposed copies of keys'
    weights."""
    snapshots = SNAPSHOTS * sum(layer.state_bytes for layer in spec.kv_layers)
    return _activations(spec, chunk) + CPU_WORKSPACE + snapshots + spec.keys_copy(format)


def load_peak(spec: ModelSpec, format: Format, kv_bytes: int, chunk: int) -> int:
    """Return the peak of private RAM in bytes while loading.

    Converted weights are made from the files one matrix at a time: besides the results there are one matrix as stored,
    its parts before they were merged, and its result. The head, which is not merged, is converted some rows at a time.
    Weights used as stored stay in the mapped files, except merged experts, which are made by layer. A tied head that is
    used as stored is the input embedding itself.
    """
    mapped = spec.mapped(format)
    table = spec.lookup_bytes + (0 if spec.head_tied and mapped else spec.embedding_bytes)
    layers = [item for item in spec.linears if item.name != spec.head]
    largest = max((spec.linear_bytes(item, "bf16") // (1 if mapped else item.matrices) for item in layers), default=0)
    kept = spec.weight_bytes(format) + table + spec.resident_bytes
    return kept + kv_bytes + host_workspace(spec, format, chunk) + max(3 * largest, _repacked(spec))


def _repacked(spec: ModelSpec) -> int:
    """Return the bytes of the head as stored, which must be decoded entirely if it is quantised in the files."""
    heads = (item for item in spec.linears if item.name == spec.head and (item.stored or item.converted))
    return sum(spec.linear_bytes(item, "bf16") for item in heads)
