"""What a model's linears cost by themselves: groups of linears with the same input, in classes of the same shapes.

A group takes one exchange between CPU and GPU, together with a following linear if both are split alike, such as
attention divided by heads with its output's projection. `pass_cost` prices a pass under given shares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from core.planning.fixed_cost import Graphs
from core.planning.machine_rates import MachineRates, cpu_rate, gpu_rate
from core.planning.native_layers import all_in_runs, called_apart
from core.spec import (
    BUCKET_TOKENS,
    DECODE,
    FEW,
    HEAD_COPY,
    Format,
    KernelRate,
    LinearSpec,
    ModelSpec,
    Storage,
    tokens_with,
)

NEARLY_ALL = 0.9
"""From this share of used experts on, all of them are streamed, used or not."""
PAIR_SHARE = 0.2
"""Time that two halves instead of one tensor cost in Python and small operations, relative to a layer's time besides
its linears: 0.09 ms of 0.49 on two cores of Zen 5."""
HEADS_SHARE, NATIVE_SHARE = 0.5, 0.2
"""Time that the CPU's heads take besides products and reading the KV cache, relative to a whole layer's on the CPU:
0.13 of 0.25 ms on two cores of Zen 4, and a fifth of it where our library computes them."""
TYPICAL_CONTEXT = 1024
"""Number of tokens assumed in the KV cache for predicted rates."""


Make = tuple[int, int, int, int, str, bool]
"""The properties that linears of a class share: rows, columns, experts, active experts, storage, whether it is the
head."""


@dataclass(frozen=True)
class GroupClass:
    """Groups with the same shapes, with the layer of each. Times are seconds of a whole group, by bucket.

    `exchange` is the fixed part of an exchange, `exchange_out` the part per share of CPU rows. `chosen`: experts, of
    which a token uses some. `after`: bytes of a following linear that is split alike; 0 = none. `heads`: the KV heads
    by which it is split while few tokens are processed; 0 = by rows.
    """

    members: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]
    count: int
    matrices: int
    nbytes: int
    cpu: tuple[float, ...]
    cpu_call: tuple[float, ...]
    gpu: tuple[float, ...]
    gpu_call: tuple[float, ...]
    exchange: tuple[float, ...]
    exchange_out: tuple[float, ...]
    streamable: tuple[bool, ...]
    chosen: bool = False
    after: int = 0
    heads: int = 0


@dataclass(frozen=True)
class Residents:
    """The resident part of each class: the first `whole` groups, and the share `part` of each of the others.

    The CPU computes `host_layers` entirely in passes of few tokens. Their groups are the last `host_groups` of each
    class, and have no resident rows. `replayed` layers are captured as graphs, with `replayed_groups` of each class,
    and with `gaps` between graphs for what is not captured of them.
    """

    whole: tuple[int, ...]
    part: tuple[float, ...]
    host_layers: tuple[int, ...] = ()
    host_groups: tuple[int, ...] = ()
    replayed: frozenset[int] = frozenset()
    replayed_groups: tuple[int, ...] = ()
    gaps: int = 0

    @property
    def graphs(self) -> Graphs:
        """The number of layers that are captured, and of gaps in them."""
        return Graphs(len(self.replayed), self.gaps)

    def with_whole(self, classes: Sequence[GroupClass]) -> Residents:
        """Return the same, with groups of which all is resident among the whole ones."""
        there = [part >= 1 for part in self.part]
        counts = zip(there, classes, self.whole, strict=True)
        whole = tuple(item.count if all_of_it else count for all_of_it, item, count in counts)
        return replace(self, whole=whole, part=tuple(0.0 if part >= 1 else part for part in self.part))

    def copied(self, classes: Sequence[GroupClass]) -> int:
        """Return the bytes of RAM for contiguous copies of following linears' columns, which the CPU reads fast."""
        shares = zip(classes, self.whole, self.part, strict=True)
        return round(sum((item.count - whole) * (1 - part) * item.after for item, whole, part in shares))

    def hosted(self, bucket: int) -> tuple[int, ...]:
        """Return the number of groups of each class that the CPU computes as parts of entire layers."""
        return self.host_groups if self.host_layers and bucket <= FEW else (0,) * len(self.whole)

    def as_graphs(self, bucket: int) -> tuple[int, ...]:
        """Return the number of groups of each class that the card replays."""
        return self.replayed_groups if self.replayed and bucket <= FEW else (0,) * len(self.whole)


def classify(
    spec: ModelSpec,
    format: Format,
    machine: MachineRates,
    *,
    head_copy: bool = False,
    paired: bool = False,
    by_heads: bool = False,
    few: int = BUCKET_TOKENS[FEW],
) -> tuple[GroupClass, ...]:
    """Group the model's linears into classes, with this machine's times.

    `head_copy`: the output head has a copy. `paired`: following linears belong to the group before them, if they can be
    split alike. `by_heads`: output projections belong to the queries, keys and values before them. `few`: the rows that
    represent the bucket FEW.
    """
    groups: dict[int, list[int]] = {}
    for index, linear in enumerate(spec.linears):
        own = linear.after if paired and spec.can_follow(linear, format) else linear.group
        groups.setdefault(linear.attends if by_heads and linear.heads else own, []).append(index)
    classes: dict[tuple[Make, ...], list[tuple[int, ...]]] = {}
    for members in groups.values():
        signature = tuple(_make(spec, format, spec.linears[index]) for index in members)
        classes.setdefault(signature, []).append(tuple(members))
    called = called_apart(spec) if machine.gpu is None else None
    return tuple(
        _class(spec, format, machine, members, few, called, head_copy=head_copy) for members in classes.values()
    )


def _make(spec: ModelSpec, format: Format, linear: LinearSpec) -> Make:
    at_head, storage = linear.name == spec.head, spec.storage(linear, format)
    return linear.rows, linear.columns, linear.matrices, linear.active, storage, at_head


def _class(
    spec: ModelSpec, format: Format, machine: MachineRates, members: list[tuple[int, ...]], few: int,
    called: Collection[int] | None, *, head_copy: bool,
) -> GroupClass:  # fmt: skip
    linears = [spec.linears[index] for index in members[0]]
    paired = linears[-1].group != linears[0].group
    # The head computes only a prompt's last position, but all rows of a few-row pass that verifies drafts.
    is_head, tokens = linears[0].name == spec.head, tokens_with(few)
    tokens = (*tokens[: FEW + 1], *(1 for _ in tokens[FEW + 1 :])) if is_head else tokens
    work = [_work(spec, format, linear, tokens) for linear in linears]
    work = _copied(spec, format, work[0]) if is_head and head_copy else work
    profile = machine.profile
    on_cpu = [cpu_rate(machine.hardware, one.storage, machine.threads).for_rows(few) for one in work]
    on_gpu = [gpu_rate(machine.gpu, one.storage).for_rows(few) for one in work] if machine.gpu else on_cpu
    launch = machine.gpu.launch_s if machine.gpu else 0.0
    # All experts of a token are one call.
    call_s = len(linears) * machine.hardware.cpu.call_s
    few_call_s = call_s if called is None or linears[0].layer in called else 0.0
    heads = linears[-1].heads if paired else 0
    if heads:
        apart_s = HEADS_SHARE * machine.hardware.cpu.layer_s * (NATIVE_SHARE if all_in_runs(spec) else 1.0)
        into, back = _exchange_by_heads(machine, linears, tokens, apart_s)
    else:
        into, back = _exchange(machine, linears, tokens)
    return GroupClass(
        members=tuple(members),
        layers=tuple(spec.linears[group[0]].layer for group in members),
        count=len(members),
        matrices=sum(linear.matrices for linear in linears),
        nbytes=sum(one.nbytes for one in work),
        cpu=tuple(profile.cpu * seconds for seconds in _seconds(work, on_cpu)),
        cpu_call=tuple(few_call_s if b <= FEW else call_s for b in range(len(tokens))),
        gpu=tuple(profile.gpu * seconds for seconds in _seconds(work, on_gpu)),
        gpu_call=tuple(launch * _launches(spec, format, machine, linears, b) for b in range(len(tokens))),
        exchange=into,
        exchange_out=back,
        # Prefetching must know what comes next: experts can only be streamed in order if nearly all are used.
        # While attention is divided by heads, so are its linears, and nothing of them is streamed.
        streamable=tuple(
            not (heads and b <= FEW)
            and sum(one.touched[b] * one.nbytes for one in work) >= NEARLY_ALL * sum(one.nbytes for one in work)
            for b in range(len(tokens))
        ),
        chosen=any(linear.matrices > linear.active for linear in linears),
        after=work[-1].nbytes if paired else 0,
        heads=heads,
    )


def _launches(
    spec: ModelSpec, format: Format, machine: MachineRates, linears: Sequence[LinearSpec], bucket: int
) -> int:
    return sum(machine.launches(spec.storage(linear, format), linear.active, bucket) for linear in linears)


@dataclass(frozen=True)
class _Work:
    """A linear by bucket: the fraction of its bytes that is read, operations, and the bucket of its rate."""

    storage: Storage
    nbytes: int
    touched: tuple[float, ...]
    operations: tuple[float, ...]
    buckets: tuple[int, ...]


def _work(spec: ModelSpec, format: Format, linear: LinearSpec, tokens: Sequence[int]) -> _Work:
    return _Work(
        spec.storage(linear, format),
        spec.linear_bytes(linear, format),
        tuple(linear.touched(m) for m in tokens),
        tuple(2.0 * m * linear.active * linear.rows * linear.columns for m in tokens),
        tuple(DECODE if m == 1 else index for index, m in enumerate(tokens)),
    )


def _copied(spec: ModelSpec, format: Format, head: _Work) -> list[_Work]:
    """Return the work of the output head's copy, read entirely for one row, and of the head, of which some is read."""
    share, reads = spec.read_again(format) / head.nbytes, [bucket == DECODE for bucket in head.buckets]
    copy = replace(
        head, storage=HEAD_COPY, nbytes=spec.head_copy(format), touched=tuple(map(float, reads)),
        operations=tuple(one * read for one, read in zip(head.operations, reads, strict=True)),
    )  # fmt: skip
    parts = [share if read else 1.0 for read in reads]
    operations = tuple(one * part for one, part in zip(head.operations, parts, strict=True))
    return [copy, replace(head, touched=tuple(parts), operations=operations)]


def _seconds(work: Sequence[_Work], rates: Sequence[KernelRate]) -> Iterator[float]:
    """Yield the seconds of all linears in each bucket."""
    for number in range(len(BUCKET_TOKENS)):
        yield sum(
            rate.seconds(one.nbytes * one.touched[number], one.operations[number], one.buckets[number])
            for one, rate in zip(work, rates, strict=True)
        )


def _exchange(
    machine: MachineRates, group: Sequence[LinearSpec], tokens: Sequence[int], apart_s: float | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the seconds to copy a group's input to the CPU, including the wait, and all results back, by bucket.

    A last linear that follows the others is the only one with results. `apart_s`: what keeping two halves costs then.
    """
    if machine.gpu is None:
        return (0.0,) * len(tokens), (0.0,) * len(tokens)
    link, overhead = machine.gpu.link, machine.profile.overhead
    first, follows = group[0], group[-1].group != group[0].group
    linears = group[-1:] if follows else group
    apart = (PAIR_SHARE * machine.gpu.layer_s if apart_s is None else apart_s) if follows else 0.0
    columns = first.columns
    rows = sum(linear.rows for linear in linears)
    # All results travel in one copy; each one except the first takes another launch to be put in place.
    waits = overhead * (apart + link.sync_s + link.back_s + machine.gpu.launch_s * (len(linears) - 1))
    into = tuple(waits + 2 * m * columns / link.d2h_pinned for m in tokens)
    return into, tuple(2 * m * rows / link.h2d_pinned for m in tokens)


def _exchange_by_heads(
    machine: MachineRates, group: Sequence[LinearSpec], tokens: Sequence[int], apart_s: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the same for attention with its output's projection: one exchange for few tokens, two for many."""
    few = _exchange(machine, group, tokens, apart_s)
    two = _exchange(machine, group[:-1], tokens), _exchange(machine, group[-1:], tokens)
    into, back = (tuple(map(sum, zip(*one, strict=True))) for one in zip(*two, strict=True))
    return few[0][: FEW + 1] + into[FEW + 1 :], few[1][: FEW + 1] + back[FEW + 1 :]
