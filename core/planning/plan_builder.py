"""Builds the Plan of a chosen layout: fractions become rows, and all figures are derived."""

from __future__ import annotations

from collections.abc import Sequence

from core.planning.candidates import Chosen, check_s
from core.planning.expert_work import expert_rates
from core.planning.job import Job
from core.planning.machine_rates import MachineRates
from core.planning.memory_budget import (
    gpu_workspace,
    host_workspace,
    kv_split,
    load_peak,
    parked_prefixes,
    ram_margin,
    reads_in_place,
    vram_margin,
)
from core.spec import (
    DECODE,
    FEW,
    QUANTUM,
    BytesPerToken,
    Confidence,
    DeviceMemory,
    Fits,
    Gpu,
    Hardware,
    LinearPlan,
    LinearSpec,
    Plan,
    Prediction,
    Rows,
    cut_columns,
    kin,
    row_bytes,
)

SLOW_TOK_S = 2.0
HOPELESS_TOK_S = 1 / 30
SPREADS: dict[Confidence, tuple[float, float]] = {"measured": (0.9, 1.1), "derived": (0.75, 1.2), "guess": (0.5, 1.5)}


def assemble(job: Job, best: Chosen) -> Plan:
    """Return the plan of the chosen layout, with `reason` still empty."""
    spec, candidate, layout = job.spec, best.candidate, best.candidate.layout
    machine = candidate.machine
    linears = _linear_plans(job, best)
    confidence = _confidence(job, machine)
    decode = _prediction(1 / best.decode.total, confidence)
    reading = _bytes_per_token(job, linears, best)
    peak = load_peak(spec, job.format, spec.kv_bytes(job.context), candidate.chunk)
    return Plan(
        model=spec.name,
        strategy=job.strategy,
        format=job.format,
        fits=_verdict(best, decode.likely),
        reason="",
        context=job.context,
        prefill_chunk=candidate.chunk,
        threads=machine.threads,
        gpu=machine.gpu.index if machine.gpu else -1,
        linears=linears,
        kv_devices=layout.kv_devices,
        host_layers=layout.residents.host_layers,
        ring=candidate.ring,
        memory=_memory(job, linears, best),
        decode=decode,
        prefill=_prediction(candidate.chunk / best.prefill.total, confidence),
        confidence=confidence,
        decode_times=best.decode,
        check_s=check_s(job, best),
        prefill_times=best.prefill,
        bytes_per_token=reading,
        ideal_ms=1000 * _ideal_s(machine.hardware, machine.gpu, reading),
        mapped=spec.mapped(job.format),
        from_disk=candidate.host.from_disk,
        active_bytes=spec.active_bytes(job.format),
        load_peak=peak + layout.head_copy + layout.residents.copied(layout.classes),
        profile=machine.profile,
        expert_rates=expert_rates(spec, job.format, machine),
        head_copy=layout.head_copy,
        kv=job.budget.kv,
        in_place=machine.gpu is not None and reads_in_place(spec, job.format, machine.gpu),
    )


def _linear_plans(job: Job, best: Chosen) -> tuple[LinearPlan, ...]:
    plans: dict[int, LinearPlan] = {}
    spec, layout, gpu = job.spec, best.candidate.layout, best.candidate.machine.gpu
    residents, index = layout.residents, gpu.index if gpu else -1
    for number, item in enumerate(layout.classes):
        for position, members in enumerate(item.members):
            part = 1.0 if position < residents.whole[number] else residents.part[number]
            streamed = [shares[number] for shares in best.streamed]
            if item.layers[position] in residents.host_layers:
                streamed[: FEW + 1] = [0.0] * (FEW + 1)
            for member in members:
                if spec.linears[member].name == spec.head:
                    # The head only ever computes the last position.
                    streamed = streamed[:1] * len(streamed)
                plans[member] = _rows_of(spec.linears[member], part, streamed, index)
            if item.heads:
                plans |= _by_heads(job, members, round(part * item.heads), streamed, index)
            elif item.after and part < 1:
                plans |= _pair(job, members, part, streamed, index)
    return tuple(plans[number] for number in range(len(spec.linears)))


def _rows_of(linear: LinearSpec, part: float, streamed: Sequence[float], gpu: int) -> LinearPlan:
    """Turn fractions into rows: residents rounded down, because they must fit; streamed rows to the nearest quantum."""
    rows = linear.rows
    resident = rows if part >= 1 else int(part * rows) // QUANTUM * QUANTUM
    return LinearPlan(linear.name, rows, _shares(rows, resident, streamed, QUANTUM), gpu, linear.group)


def _shares(count: int, resident: int, streamed: Sequence[float], quantum: int) -> tuple[Rows, Rows, Rows, Rows]:
    """Return the rows by bucket, with these streamed shares of the non-resident ones."""
    rest = count - resident
    away = [rest if share >= 1 else min(rest, round(share * rest / quantum) * quantum) for share in streamed]
    one, few, some, many = (Rows(resident, sent, rest - sent) for sent in away)
    return one, few, some, many


def _pair(job: Job, members: Sequence[int], part: float, streamed: Sequence[float], gpu: int) -> dict[int, LinearPlan]:
    """Split linears by rows, and the last one, which follows them, by the same columns.

    The split is equal for one row and for few, so that the CPU's columns are copied only once.
    """
    spec, last = job.spec, job.spec.linears[members[-1]]
    storage, count = spec.storage(last, job.format), last.columns
    quantum = max(QUANTUM, cut_columns(storage))
    resident, room = int(part * count) // quantum * quantum, part * row_bytes(storage, count)
    while resident and row_bytes(storage, resident) > room:  # scales of whole rows lie on both sides
        resident -= quantum
    alike = [streamed[DECODE]] * (FEW + 1)
    shares = _shares(count, resident, [*alike, *streamed[FEW + 1 :]], quantum)
    named = ((member, spec.linears[member]) for member in members)
    return {
        member: LinearPlan(one.name, count, shares, gpu, one.group, last.after if one is last else -1)
        for member, one in named
    }


def _by_heads(
    job: Job, members: Sequence[int], count: int, streamed: Sequence[float], gpu: int
) -> dict[int, LinearPlan]:
    """Give the card the rows of `count` KV heads of queries, keys and values, and their columns of the last linear."""
    spec, output, plans = job.spec, job.spec.linears[members[-1]], {}
    for member in members:
        one, last = spec.linears[member], member == members[-1]
        total = one.columns if last else one.rows
        quantum = max(QUANTUM, cut_columns(spec.storage(one, job.format))) if last else QUANTUM
        shares = _shares(total, total // output.heads * count, streamed, quantum)
        after, heads = (output.attends, count) if last else (-1, 0)
        plans[member] = LinearPlan(one.name, total, shares, gpu, one.group, after, heads)
    return plans


def _resident(item: LinearSpec, plan: LinearPlan) -> bool:
    """Return whether any of it is on the card."""
    return plan.resident > 0


def _copied_alone(item: LinearSpec, plan: LinearPlan) -> bool:
    """Return whether a card that reads rows in place has a copy: of some experts, or of some columns."""
    return 0 < plan.resident < plan.rows and (plan.by_columns or item.experts is not None)


def _memory(job: Job, linears: Sequence[LinearPlan], best: Chosen) -> tuple[DeviceMemory, ...]:
    spec, candidate, layout = job.spec, best.candidate, best.candidate.layout
    hardware, gpu = candidate.machine.hardware, candidate.machine.gpu
    on_gpu, on_host = kv_split(spec, layout.kv_devices, job.context, layout.kv_part)
    copied = layout.residents.copied(layout.classes)
    cpu = DeviceMemory(
        "cpu",
        candidate.host.weights + copied,
        on_host,
        host_workspace(spec, job.format, candidate.chunk),
        candidate.ring.total,
        hardware.cpu.ram_free,
        ram_margin(hardware),
        parked_prefixes(spec, job.context, candidate.host.left - copied),
        spec.sight_bytes,
    )
    if gpu is None:
        return (cpu,)
    apart = _copied_alone if reads_in_place(spec, job.format, gpu) else _resident
    weights = spec.resident_bytes + sum(
        spec.part_bytes(item, plan, plan.resident, job.format)
        for item, plan in zip(spec.linears, linears, strict=True)
        if apart(item, plan)
    )
    workspace = gpu_workspace(spec, job.format, gpu, candidate.chunk, job.context)
    return cpu, DeviceMemory(
        device_name(gpu), weights, on_gpu, workspace, candidate.ring.total, gpu.vram_free, vram_margin(gpu)
    )


def device_name(gpu: Gpu) -> str:
    """Return the name under which a card's memory is listed, such as 'cuda:0'."""
    return f"{gpu.kind}:{gpu.index}"


def _bytes_per_token(job: Job, linears: Sequence[LinearPlan], best: Chosen) -> BytesPerToken:
    spec, format, layout = job.spec, job.format, best.candidate.layout
    cpu = link = gpu = 0.0
    for item, plan in zip(spec.linears, linears, strict=True):
        size, rows = item.active / item.matrices * spec.linear_bytes(item, format) / plan.rows, plan.decode
        is_copied = item.name == spec.head and layout.head_copy
        cpu += spec.head_copy(format) + spec.read_again(format) if is_copied else rows.cpu * size
        link += rows.streamed * size
        gpu += (rows.resident + rows.streamed) * size
    on_gpu, on_host = kv_split(spec, layout.kv_devices, job.occupied, layout.kv_part)
    if best.candidate.machine.gpu is None:
        return BytesPerToken(round(cpu) + on_host + spec.resident_bytes)
    return BytesPerToken(round(cpu) + on_host, round(link), round(gpu) + on_gpu + spec.resident_bytes)


def _ideal_s(hardware: Hardware, gpu: Gpu | None, reading: BytesPerToken) -> float:
    """Return the seconds per token if all engines moved their bytes at their peak rates concurrently."""
    cpu = reading.cpu / hardware.cpu.read_bytes_s
    if gpu is None:
        return cpu
    on_gpu = reading.gpu / gpu.bytes_s
    return max(cpu + on_gpu if gpu.shares_cores else max(cpu, on_gpu), reading.link / gpu.link.h2d_pinned)


def _confidence(job: Job, machine: MachineRates) -> Confidence:
    timed = {rate.storage for rate in machine.hardware.cpu.rates}
    used = {kin(job.spec.storage(linear, job.format)) for linear in job.spec.linears}
    if not machine.hardware.measured or not used <= timed:
        return "guess"
    return "measured" if machine.profile.tokens else "derived"


def _prediction(likely: float, confidence: Confidence) -> Prediction:
    low, high = SPREADS[confidence]
    return Prediction(likely * low, likely, likely * high)


def _verdict(best: Chosen, tok_s: float) -> Fits:
    if not best.candidate.host.fits or tok_s < HOPELESS_TOK_S:
        return "no"
    return "slow" if best.candidate.host.from_disk or tok_s < SLOW_TOK_S else "yes"
