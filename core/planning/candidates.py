"""Candidate layouts of a model over VRAM and RAM with their predicted times, for the planner to choose from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain

from core.planning.capture import with_replays
from core.planning.cost_model import GroupClass, Residents, classify
from core.planning.fixed_cost import FixedCosts, fixed_costs
from core.planning.job import Job
from core.planning.machine_rates import MachineRates
from core.planning.memory_budget import (
    HostMemory,
    copied_to_card,
    gpu_workspace,
    host_memory,
    kv_split,
    reads_in_place,
    room_for_weights,
    vram_limit,
    weights_on_card,
)
from core.planning.native_layers import all_in_runs
from core.planning.pass_cost import PassCost, with_disk
from core.planning.row_split import STREAMING, best_streams, nothing_resident, resident_choices
from core.planning.speculation import CHECKED
from core.spec import (
    BUCKET_TOKENS,
    DECODE,
    FEW,
    PREFILL,
    Format,
    Gpu,
    Link,
    ModelSpec,
    Ring,
    Strategy,
    Times,
    row_bytes,
)
from core.units import GIB, MIB

# The typical prompt and reply, in tokens, by which layouts are compared.
TYPICAL_PROMPT, TYPICAL_REPLY = 512, 256
KV_PARTS = (1.0, 0.5, 0.0)
HEAD_PARTS = (0.25, 0.5, 0.75, 0.875)
"""Shares of the KV heads that a card may have."""
TIERS = ((512, 8 * MIB), (256, 2 * MIB), (32, MIB // 2))
"""Prefill chunk in tokens, and the largest staging buffer in bytes; the smaller ones are tried on small cards only."""
BUFFERS, LEAST_BUFFER = 8, 2 * MIB
BUFFER_S = 2e-3
"""Target transfer time of a buffer: long compared with the fixed cost of each transfer."""
SMALL_CARD = 4 * GIB
HEAD_LAYER = -1
"""The `LinearSpec.layer` of linears outside of the layers."""
# Layouts whose decode is slower than the best by this factor cannot make up for it with faster prefill.
WORTH_PRICING = 1.5


@dataclass(frozen=True)
class Layout:
    """Where weights and the KV cache lie. `kv_part`: the share of the KV heads that is on the card, in layers whose KV
    cache is there. `head_copy`: bytes of a copy of the output head; 0 = none."""

    classes: tuple[GroupClass, ...]
    residents: Residents
    kv_devices: tuple[int, ...]
    kv_part: float = 1.0
    head_copy: int = 0

    def costs(self, spec: ModelSpec, machine: MachineRates, occupied: int, few: int = BUCKET_TOKENS[FEW]) -> FixedCosts:
        """Return the fixed costs of passes over at most `few` rows, and of others, after `occupied` tokens."""
        held = self.residents
        return fixed_costs(
            spec, machine, self.kv_devices, occupied, held.host_layers, held.graphs, self.kv_part, few=few
        )


@dataclass(frozen=True)
class Candidate:
    """A layout with its price on a machine. `costs` assume a half-full KV cache."""

    layout: Layout
    machine: MachineRates
    chunk: int
    ring: Ring
    host: HostMemory
    costs: FixedCosts
    strategy: Strategy

    def best(self, bucket: int) -> tuple[tuple[float, ...], Times]:
        """Return the best streamed shares in this bucket, by class, and their times."""
        if bucket not in self._found:
            shares, times = best_streams(self._pass_cost(bucket, self.costs))
            self._found[bucket] = shares, with_disk(times, self._disk_s)
        return self._found[bucket]

    def times(self, bucket: int, shares: Sequence[float], costs: FixedCosts) -> Times:
        """Return the times of these shares with other fixed costs."""
        return with_disk(self._pass_cost(bucket, costs).times(shares), self._disk_s)

    @cached_property
    def _found(self) -> dict[int, tuple[tuple[float, ...], Times]]:
        """What `best` has found, by bucket."""
        return {}

    @property
    def prefill_bucket(self) -> int:
        """Return the bucket of prefill chunks; a chunk shorter than the bucket's example costs at most as much."""
        return PREFILL if self.chunk > BUCKET_TOKENS[PREFILL - 1] else PREFILL - 1

    @property
    def _disk_s(self) -> float:
        return self.host.from_disk / self.machine.hardware.disk_bytes_s

    def _pass_cost(self, bucket: int, costs: FixedCosts) -> PassCost:
        return PassCost(
            self.layout.classes, self.layout.residents, bucket, self.machine, costs, self.strategy, self.ring
        )


@dataclass(frozen=True)
class Chosen:
    """A layout with its streamed shares, by bucket and then by class, and its times."""

    candidate: Candidate
    streamed: tuple[tuple[float, ...], ...]
    decode: Times
    prefill: Times


def best_candidate(candidates: Sequence[Candidate], job: Job) -> Chosen:
    """Return the layout with the fastest typical reply, among those that fit if any does; timed at the job's
    occupied tokens.

    Attention is divided by heads, and captured around gaps, only if a token takes no longer then, either.
    """
    best = _fastest(candidates, job)
    for is_plain in (_is_undivided, _is_without_gaps):
        others = [one for one in candidates if is_plain(one) and one.host.fits >= best.candidate.host.fits]
        if others and not is_plain(best.candidate):
            best = min(best, _fastest(others, job), key=lambda one: one.decode.total)
    return best


def _is_undivided(candidate: Candidate) -> bool:
    return candidate.layout.kv_part == 1


def _is_without_gaps(candidate: Candidate) -> bool:
    return _is_undivided(candidate) and not candidate.layout.residents.gaps


def _fastest(candidates: Sequence[Candidate], job: Job) -> Chosen:
    fitting = [candidate for candidate in candidates if candidate.host.fits] or list(candidates)
    decodes = [candidate.best(DECODE)[1].total for candidate in fitting]
    limit = WORTH_PRICING * min(decodes)
    near = [(candidate, seconds) for candidate, seconds in zip(fitting, decodes, strict=True) if seconds <= limit]
    return _chosen(min(near, key=lambda pair: _reply_s(*pair))[0], job)


def _chosen(best: Candidate, job: Job) -> Chosen:
    streamed = tuple(best.best(bucket)[0] for bucket in range(len(BUCKET_TOKENS)))
    costs = best.layout.costs(job.spec, best.machine, job.occupied)
    decode, prefill = (best.times(bucket, streamed[bucket], costs) for bucket in (DECODE, best.prefill_bucket))
    return Chosen(best, streamed, decode, prefill)


def check_s(job: Job, chosen: Chosen) -> tuple[float, ...]:
    """Return the seconds of passes over CHECKED rows, after the job's occupied tokens."""
    best, layout = chosen.candidate, chosen.candidate.layout
    paired = any(item.after for item in layout.classes)
    how = {"head_copy": layout.head_copy > 0, "paired": paired, "by_heads": layout.kv_part < 1}
    found = []
    for rows in CHECKED:
        costs = layout.costs(job.spec, best.machine, job.occupied, rows)
        classes = classify(job.spec, job.format, best.machine, **how, few=rows)
        priced = replace(best, layout=replace(layout, classes=classes))
        found.append(priced.times(FEW, chosen.streamed[FEW], costs).total)
    return tuple(found)


def gpu_candidates(job: Job, machine: MachineRates) -> Iterator[Candidate]:
    """Yield all ways to use this card within its limit; none if not even the workspace fits."""
    spec, gpu = job.spec, machine.gpu
    assert gpu is not None
    limit = vram_limit(gpu, job.budget)
    classes = classify(spec, job.format, machine)
    for chunk, most in TIERS if limit <= SMALL_CARD else TIERS[:1]:
        free = limit - spec.resident_bytes - gpu_workspace(spec, job.format, gpu, chunk, job.context)
        ring = _ring(job.strategy, gpu.link, most)
        for layout, used in _layouts(job, machine, classes, free, ring):
            one = _priced(job, machine, layout, chunk, used)
            if layout.classes is classes or _has_room(one, _nbytes(classes)):
                yield one


def _layouts(
    job: Job, machine: MachineRates, classes: tuple[GroupClass, ...], free: int, ring: Ring
) -> Iterator[tuple[Layout, Ring]]:
    """Yield the layouts for a card with `free` bytes, and what each of them uses of the ring."""
    assert machine.gpu is not None
    spec, everything = job.spec, _nbytes(classes)
    makes = [classes, *_paired(job, machine)]
    for share in KV_PARTS:
        kv_devices = _kv_devices(spec, machine.gpu.index, share)
        room = free - kv_split(spec, kv_devices, job.context)[0]
        used = Ring() if room >= everything else ring
        for make in makes if room >= used.total else ():
            for residents in resident_choices(make, room - used.total, machine, job.strategy):
                yield Layout(make, residents, kv_devices), used
    left = 0 if free - spec.kv_bytes(job.context) >= everything else free - ring.total
    for layout in chain(_by_heads(job, machine, left), _whole_layers(job, machine.gpu, classes, free - ring.total)):
        yield layout, ring


def _priced(job: Job, machine: MachineRates, layout: Layout, chunk: int, ring: Ring) -> Candidate:
    """Return the layout with the memory that it needs on the host, what of it is replayed, and its fixed costs."""
    spec, gpu, residents = job.spec, machine.gpu, layout.residents
    on_card, on_host = kv_split(spec, layout.kv_devices, job.context, layout.kv_part)
    room = room_for_weights(spec, job.format, machine.hardware, job.budget, on_host, chunk, ring)
    copies = residents
    if gpu is not None and gpu.unified:
        in_place = reads_in_place(spec, job.format, gpu)
        weights = (copied_to_card if in_place else weights_on_card)(spec, layout.classes, residents)
        room -= on_card + weights + gpu_workspace(spec, job.format, gpu, chunk, job.context) + ring.total
        copies = nothing_resident(layout.classes) if in_place else residents
    host = host_memory(spec, job.format, layout.classes, copies, room)
    if job.strategy == "hetegen":
        residents = with_replays(residents, spec, machine, layout.classes, layout.kv_devices)
    layout = replace(layout, residents=residents)
    costs = layout.costs(spec, machine, job.context // 2)
    return Candidate(layout, machine, chunk, ring, host, costs, job.strategy)


def _has_room(candidate: Candidate, everything: int) -> bool:
    """Return whether all weights and the copied columns fit into RAM."""
    host = candidate.host
    return host.weights >= everything and host.left >= candidate.layout.residents.copied(candidate.layout.classes)


def _nbytes(classes: Sequence[GroupClass]) -> int:
    return sum(item.count * item.nbytes for item in classes)


def _paired(job: Job, machine: MachineRates) -> Iterator[tuple[GroupClass, ...]]:
    """Yield the classes in which linears are split together with the ones that follow them, if there are any.

    The gain is that no results travel in between, so there is none where all of them are on one side.
    """
    spec = job.spec
    if job.strategy not in STREAMING and any(spec.can_follow(linear, job.format) for linear in spec.linears):
        yield classify(spec, job.format, machine, paired=True)


def _by_heads(job: Job, machine: MachineRates, room: int) -> Iterator[Layout]:
    """Yield the layouts in which attention is divided by heads.

    Hidden states travel once for attention, and both engines read their part of the KV cache at the same time.
    """
    spec, gpu = job.spec, machine.gpu
    heads = spec.kv_heads(job.format) if job.strategy not in STREAMING else 0
    if heads < 2 or gpu is None or gpu.unified or room <= 0:
        return
    classes = classify(spec, job.format, machine, paired=True, by_heads=True)
    kv_devices, others = _kv_devices(spec, gpu.index, 1.0), [item for item in classes if not item.heads]
    for count in sorted({max(1, min(heads - 1, round(heads * part))) for part in HEAD_PARTS}):
        part = count / heads
        left = room - kv_split(spec, kv_devices, job.context, part)[0]
        left -= _bytes_of_heads(spec, job.format, classes, count)
        for residents in resident_choices(others, left, machine, job.strategy) if left >= 0 else ():
            yield Layout(classes, _beside_heads(classes, residents, part), kv_devices, part)


def _bytes_of_heads(spec: ModelSpec, format: Format, classes: Sequence[GroupClass], count: int) -> int:
    """Return the bytes of the weights of `count` KV heads in all layers; scales of whole rows lie on both sides."""
    size = 0
    for item in classes:
        *parts, output = (spec.linears[member] for member in item.members[0])
        if item.heads:
            columns = output.columns // item.heads * count
            own = output.rows * row_bytes(spec.storage(output, format), columns)
            size += item.count * (own + sum(spec.linear_bytes(one, format) // item.heads * count for one in parts))
    return size


def _beside_heads(classes: Sequence[GroupClass], others: Residents, part: float) -> Residents:
    """Return residents of all classes: `part` of those that are divided by heads, and the `others` as given."""
    whole, parts = iter(others.whole), iter(others.part)
    return Residents(
        tuple(0 if item.heads else next(whole) for item in classes),
        tuple(part if item.heads else next(parts) for item in classes),
    )


def _whole_layers(job: Job, gpu: Gpu, classes: tuple[GroupClass, ...], room: int) -> Iterator[Layout]:
    """Yield the layouts with the first layers and their KV cache on the card and the others on the CPU.

    Tries as many layers as fit, and none; each with the output head on the card or not. A requested card gets all
    layers if they fit.
    """
    spec = job.spec
    if job.strategy in STREAMING or room < 0 or not all_in_runs(spec):
        return
    weights = Counter[int]()
    for item in classes:
        for layer in item.layers:
            weights[layer] += item.nbytes
    head = weights.pop(HEAD_LAYER, 0)
    for kv in spec.kv_layers:
        weights[kv.layer] += kv.nbytes(job.context)
    for kept in {head, 0} if head <= room else {0}:
        sizes = accumulate((weights[layer] for layer in range(spec.layers)), initial=kept)
        most = sum(size <= room for size in sizes) - 1
        counts = set() if most == spec.layers and gpu.requested else {0, most} - {spec.layers}
        there = {HEAD_LAYER} if kept else set()
        yield from (_divided_at(spec, classes, gpu.index, count, there) for count in counts)


def _divided_at(
    spec: ModelSpec, classes: tuple[GroupClass, ...], index: int, on_card: int, besides: Collection[int]
) -> Layout:
    """Return the layout with the first `on_card` layers on the card, and those `besides`."""
    there = {*range(on_card), *besides}
    whole = tuple(sum(layer in there for layer in item.layers) for item in classes)
    hosted = range(on_card, spec.layers)
    groups = tuple(sum(layer in hosted for layer in item.layers) for item in classes)
    kv_devices = tuple(index if kv.layer < on_card else -1 for kv in spec.kv_layers)
    return Layout(classes, Residents(whole, (0.0,) * len(classes), tuple(hosted), groups), kv_devices)


def comparable(candidates: Sequence[Candidate], best: Candidate) -> list[Candidate]:
    """Return those with the same prefill chunk and KV placement as `best`, so that only the strategy differs.

    Returns all candidates if there are none.
    """
    chunk, kv_devices = best.chunk, best.layout.kv_devices
    alike = [one for one in candidates if (one.chunk, one.layout.kv_devices) == (chunk, kv_devices)]
    return alike or list(candidates)


def _ring(strategy: Strategy, link: Link, most: int) -> Ring:
    """Return a strategy's ring, with buffers for this link of at most `most` bytes; serial copies take one buffer."""
    if strategy == "cpu":
        return Ring()
    size = 1 << round(math.log2(max(1.0, BUFFER_S * link.staged)))
    buffers, copiers = (1, 1) if strategy == "serial" else (BUFFERS, link.copiers)
    return Ring(buffers, min(max(size, LEAST_BUFFER), most), copiers)


def cpu_candidate(job: Job, machine: MachineRates) -> Candidate:
    """Return the layout with everything on the CPU, with a copy of the output head if there is room.

    The copy is not subject to its price: with it, tokens were as fast or up to a sixth faster (tests/bench/RESULTS.md),
    while rates of two storages, measured at different times, differ by more than that.
    """
    if not job.budget.whole_head and (size := job.spec.head_copy(job.format)):
        copied = _on_cpu(job, machine, size)
        if copied.host.fits:
            return copied
    return _on_cpu(job, machine, 0)


def _on_cpu(job: Job, machine: MachineRates, head_copy: int) -> Candidate:
    classes = classify(job.spec, job.format, machine, head_copy=head_copy > 0)
    kv_devices = (-1,) * len(job.spec.kv_layers)
    layout = Layout(classes, nothing_resident(classes), kv_devices, head_copy=head_copy)
    return _priced(replace(job, strategy="hetegen"), machine, layout, TIERS[0][0], Ring())


def _reply_s(candidate: Candidate, decode_s: float) -> float:
    """Return the seconds of a typical prompt and reply."""
    prefill_s = candidate.best(candidate.prefill_bucket)[1].total
    return TYPICAL_REPLY * decode_s + TYPICAL_PROMPT / candidate.chunk * prefill_s


def _kv_devices(spec: ModelSpec, index: int, part: float) -> tuple[int, ...]:
    count = len(spec.kv_layers)
    on_gpu = round(part * count)
    return (index,) * on_gpu + (-1,) * (count - on_gpu)
