"""The cost of a pass besides its linears: attention, and the time between products, by where layers are computed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from core.planning.machine_rates import GUESSED_FLOPS, MachineRates
from core.planning.native_layers import around_products_s
from core.spec import BUCKET_LIMITS, BUCKET_TOKENS, FEW, PREFILL, ModelSpec, tokens_with

GAP_SHARE = 0.1
"""Fraction of a layer's time besides its linears that an MLP takes: 3 of 38 launches of a layer of llama."""
CHOICE_SHARE = 0.4
"""Time that choosing experts takes besides their products, relative to the same and beyond a dense MLP's, counted in
`core.layers.expert_cache`: 5 launches of a router and 8 around products instead of 3, and 6 operations of the host."""
CPU_ATTENTION_SHARE = 0.4
"""Fraction of the memory bandwidth at which attention on the CPU reads the KV cache."""


class Graphs(NamedTuple):
    """What a card replays: `layers`, without `gaps` modules of them."""

    layers: int = 0
    gaps: int = 0


NO_GRAPHS = Graphs()


@dataclass(frozen=True)
class FixedCosts:
    """The cost of a pass besides its linears, by bucket: attention (where the KV cache lies) and the rest."""

    attention: tuple[float, ...]
    overhead: tuple[float, ...]


def fixed_costs(
    spec: ModelSpec, machine: MachineRates, kv_devices: Sequence[int], occupied: int,
    host_layers: Collection[int] = (), graphs: Graphs = NO_GRAPHS, kv_part: float = 1.0, few: int = BUCKET_TOKENS[FEW],
) -> FixedCosts:  # fmt: skip
    """Return the costs with attention over `occupied` tokens, with `kv_devices` and `host_layers` as in a Plan.

    `kv_part`: the share of the heads of every layer that is on the card; the CPU computes the others at the same time.
    `few`: the rows that represent the bucket FEW.
    """
    chosen = frozenset(linear.layer for linear in spec.linears if linear.matrices > linear.active)
    sizes = [layer.nbytes(occupied) for layer in spec.kv_layers]
    on_host = sum(size * (1 - kv_part if device >= 0 else 1) for size, device in zip(sizes, kv_devices, strict=True))
    away = sum(device < 0 for device in kv_devices)
    share = on_host / max(1, sum(sizes))
    attention, overhead = [], []
    for bucket, m in enumerate(tokens_with(few)):
        hosted, replayed = (len(host_layers), graphs) if bucket <= FEW else (0, NO_GRAPHS)
        choices = len(chosen.difference(host_layers) if hosted else chosen)
        operations = 4.0 * m * (occupied + m) / 2 * spec.hidden * spec.layers if m > 1 else 0.0
        host = _host_attention(spec, machine, m, occupied, on_host, share)
        card = _gpu_attention(machine, sum(sizes) - on_host, (1 - share) * operations)
        seconds = max(host, card) if kv_part < 1 and not machine.shares_cores else host + card
        visits = spec.layers if kv_part < 1 and bucket > FEW else away - hosted
        seconds += visits * _visit_s(spec, machine, m)
        attention.append(seconds)
        between = _layers_s(spec, machine, hosted, replayed, m) + choices * _choice_s(machine)
        between += machine.hardware.cpu.pass_s + _drawn(m) * spec.vocab * machine.hardware.cpu.score_s
        overhead.append(machine.profile.overhead * between)
    return FixedCosts(tuple(attention), tuple(overhead))


def _host_attention(
    spec: ModelSpec, machine: MachineRates, tokens: int, occupied: int, nbytes: float, share: float
) -> float:
    """Return the seconds of attention on the CPU, which holds `nbytes` of the KV cache, a `share` of the whole.

    For few rows, the first one takes the time of reading them, and each further one adds its computation. A prompt
    takes the longer of both.
    """
    reading = nbytes / (machine.hardware.cpu.read_bytes_s * CPU_ATTENTION_SHARE)
    a_row = 4.0 * spec.hidden * spec.layers * share / (0.5 * _cpu_flops(machine))
    if tokens <= BUCKET_LIMITS[FEW]:
        return reading + (tokens - 1) * occupied * a_row
    return max(reading, tokens * (occupied + tokens) / 2 * a_row)


def _drawn(tokens: int) -> int:
    """Return the number of tokens drawn after a pass: one per row when drafts are verified, one for a prompt."""
    return tokens if tokens <= BUCKET_LIMITS[FEW] else 1


def _visit_s(spec: ModelSpec, machine: MachineRates, tokens: int) -> float:
    """Return the seconds to copy a layer's hidden states to the host and back."""
    if machine.gpu is None:
        return 0.0
    link = machine.gpu.link
    return machine.profile.overhead * link.sync_s + 4.0 * tokens * spec.hidden / link.d2h_pinned


def _layers_s(spec: ModelSpec, machine: MachineRates, hosted: int, graphs: Graphs, tokens: int) -> float:
    """Return the seconds of all layers besides linears and attention, with `hosted` of them on the CPU.

    A gap between graphs takes one more launch, and a copy of its result.
    """
    cpu = machine.hardware.cpu
    if machine.gpu is None:
        return around_products_s(spec, cpu, tokens)
    visit = _visit_s(spec, machine, tokens) if hosted else 0.0
    called = spec.layers - hosted - machine.replay_saves * (graphs.layers - GAP_SHARE * graphs.gaps)
    return cpu.run_s * hosted + machine.gpu.layer_s * called + 2 * graphs.gaps * machine.gpu.launch_s + visit


def _choice_s(machine: MachineRates) -> float:
    """Return the seconds in which a layer on a card chooses experts: the router's launches, and the host's wait for
    what it chose. No graph contains that."""
    return CHOICE_SHARE * machine.gpu.layer_s + machine.gpu.link.sync_s if machine.gpu else 0.0


def _gpu_attention(machine: MachineRates, nbytes: float, operations: float) -> float:
    gpu = machine.gpu
    return max(nbytes / gpu.bytes_s, operations / (0.5 * gpu.flops)) if gpu else 0.0


def _cpu_flops(machine: MachineRates) -> float:
    return max((rate.flops[PREFILL] for rate in machine.hardware.cpu.rates), default=GUESSED_FLOPS[PREFILL])
