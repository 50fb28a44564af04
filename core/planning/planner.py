"""Decides, as data, where a model's weights lie and who computes them. Pure and deterministic; loads nothing.

Subtracts mandatory memory (KV cache, workspace, staging ring, margin), then chooses residents by gain per byte, then
the streamed shares of each phase. There are few ways to do each; the cost model prices all, and the fastest reply wins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from core.planning.calibration import fully_resident
from core.planning.candidates import Candidate, best_candidate, comparable, cpu_candidate, gpu_candidates
from core.planning.capture import with_capture
from core.planning.explain import FORMAT_WORDS, figures, format_reason, reason, tok_s, too_big_or_busy
from core.planning.job import Job
from core.planning.machine_rates import MachineRates
from core.planning.memory_budget import graph_bytes
from core.planning.plan_builder import assemble
from core.planning.sight import with_sight
from core.spec import COMFORTABLE_TOK_S, FORMATS, Budget, Format, Hardware, ModelSpec, Plan, Profile, Strategy
from core.units import GIB, MIB, format_memory

DEFAULT_CONTEXT = 8192
# The shortest context that is chosen automatically.
SHORT_CONTEXT = 2048
# The smallest gain, and the smallest amount of memory, for which to give advice.
WORTH_SAYING, WORTH_CLOSING = 1.05, 200 * MIB


def place(
    spec: ModelSpec,
    hardware: Hardware,
    budget: Budget,
    strategy: Strategy = "hetegen",
    profile: Profile | None = None,
) -> Plan:
    """Return the plan for this model on this machine as it is now, even if the model cannot run: see `fits`."""
    known, spec = profile or Profile(), spec.with_kv(budget.kv)
    plan = _place_now(spec, hardware, budget, strategy, known)
    if plan.fits == "yes":
        return replace(plan, reason=reason(plan, spec, hardware))
    idle = _place_now(spec, idle_machine(hardware), budget, strategy, known)
    return replace(plan, reason=too_big_or_busy(plan, idle, spec, hardware, budget.ram))


def explain(plan: Plan, spec: ModelSpec, hardware: Hardware) -> list[str]:
    """Return what was decided, why, and what would change it, as sentences for users."""
    lines = [plan.reason, *plan.reasons, *figures(plan, spec)]
    asked = Budget(threads=plan.threads, context=plan.context, format=plan.format, kv=plan.kv)
    for what, machine, budget in _changes(plan, hardware, asked):
        better = place(spec, machine, budget, plan.strategy, plan.profile)
        if better.fits != "no" and better.decode.likely > plan.decode.likely * WORTH_SAYING:
            lines.append(f"{what}: {tok_s(plan.decode.likely)} -> {tok_s(better.decode.likely)} tokens per second.")
    return lines


def _changes(plan: Plan, hardware: Hardware, asked: Budget) -> Iterator[tuple[str, Hardware, Budget]]:
    """Yield what a user could change: words, and the machine and budget that would result."""
    idle = idle_machine(hardware)
    for now, then in zip(hardware.gpus, idle.gpus, strict=True):
        if (others := then.vram_free - now.vram_free) > WORTH_CLOSING:
            freed = replace(hardware, gpus=tuple(then if gpu is now else gpu for gpu in hardware.gpus))
            yield f"Closing {format_memory(others)} of other programs' graphics memory", freed, asked
    if (others := idle.cpu.ram_free - hardware.cpu.ram_free) > WORTH_CLOSING:
        yield f"Closing {format_memory(others)} of other programs", replace(hardware, cpu=idle.cpu), asked
    if plan.context > SHORT_CONTEXT:
        yield f"A context of {SHORT_CONTEXT} tokens", hardware, replace(asked, context=SHORT_CONTEXT)
    for format in FORMATS[FORMATS.index(plan.format) + 1 :]:
        yield f"Using {FORMAT_WORDS[format]}", hardware, replace(asked, format=format)
    yield from _more_vram(plan, hardware, asked)
    if any(gpu.index == plan.gpu and gpu.requested for gpu in hardware.gpus):
        yield "Not using the card that was asked for", replace(hardware, gpus=()), asked


def _more_vram(plan: Plan, hardware: Hardware, asked: Budget) -> Iterator[tuple[str, Hardware, Budget]]:
    for gpu in hardware.gpus:
        if gpu.index == plan.gpu and not gpu.simulated and not fully_resident(plan):
            larger = replace(gpu, vram_total=2 * gpu.vram_total, vram_free=gpu.vram_free + gpu.vram_total)
            cards = tuple(larger if one is gpu else one for one in hardware.gpus)
            yield "A card with twice the memory", replace(hardware, gpus=cards), asked


def idle_machine(hardware: Hardware) -> Hardware:
    """Return the same machine with nothing else running, except the system itself."""
    cpu = hardware.cpu
    free = max(cpu.ram_free, cpu.ram_total - max(2 * GIB, cpu.ram_total // 8))
    gpus = tuple(
        replace(gpu, vram_free=max(gpu.vram_free, gpu.vram_total - (0 if gpu.simulated else GIB // 2)))
        for gpu in hardware.gpus
    )
    return replace(hardware, cpu=replace(cpu, ram_free=min(free, cpu.ram_total)), gpus=gpus)


def freed_machine(hardware: Hardware, plans: Sequence[Plan]) -> Hardware:
    """Return the same machine with the memory of these plans free, but no more than there is: pages of mapped files may
    be counted as free already."""
    held: Counter[str] = Counter()
    for memory in (memory for plan in plans for memory in plan.memory):
        held[memory.device] += memory.used
    cpu = replace(hardware.cpu, ram_free=min(hardware.cpu.ram_total, hardware.cpu.ram_free + held["cpu"]))
    gpus = tuple(
        replace(gpu, vram_free=min(gpu.vram_total, gpu.vram_free + held[f"{gpu.kind}:{gpu.index}"]))
        for gpu in hardware.gpus
    )
    return replace(hardware, cpu=cpu, gpus=gpus)


def _place_now(spec: ModelSpec, hardware: Hardware, budget: Budget, strategy: Strategy, profile: Profile) -> Plan:
    if budget.format != "auto":
        return _place_as(spec, hardware, budget, strategy, profile, budget.format)
    plans: list[Plan] = []
    for format in FORMATS:
        plans.append(_place_as(spec, hardware, budget, strategy, profile, format))
        if plans[-1].fits == "yes" and plans[-1].decode.likely >= COMFORTABLE_TOK_S:
            break
    usable = [plan for plan in plans if plan.fits == "yes" and plan.decode.likely >= COMFORTABLE_TOK_S]
    best = usable[0] if usable else max(plans, key=lambda plan: (plan.rank, plan.decode.likely))
    return replace(best, reasons=(format_reason(best, plans), *best.reasons))


def _place_as(
    spec: ModelSpec, hardware: Hardware, budget: Budget, strategy: Strategy, profile: Profile, format: Format
) -> Plan:
    job = Job(spec, format, budget, strategy, _context(spec, hardware, budget))
    threads = budget.threads or max(1, hardware.cpu.threads)
    chosen = best_candidate(_candidates(job, hardware, profile, threads), job)
    plan, gpu = assemble(job, chosen), chosen.candidate.machine.gpu
    reserved = graph_bytes(spec, gpu, job.context) if gpu else 0
    return with_capture(with_sight(plan, spec, hardware, budget), spec, hardware, reserved)


def _candidates(job: Job, hardware: Hardware, profile: Profile, threads: int) -> list[Candidate]:
    """Return the layouts to choose from. Unless a card was requested, the CPU alone may be faster."""
    cards = [MachineRates(hardware, gpu, profile, threads) for gpu in hardware.gpus]
    found = [one for card in cards for one in gpu_candidates(job, card)]
    if found and job.strategy != "hetegen":
        usual = replace(job, strategy="hetegen")
        if best := [one for card in cards for one in gpu_candidates(usual, card)]:
            found = comparable(found, best_candidate(best, usual).candidate)
    if not found or (job.strategy == "hetegen" and not any(gpu.requested for gpu in hardware.gpus)):
        found.append(cpu_candidate(job, MachineRates(hardware, None, profile, threads)))
    return found


def _context(spec: ModelSpec, hardware: Hardware, budget: Budget) -> int:
    """Return the context in tokens: as requested, or as many as fit into a quarter of the free memory."""
    if budget.context:
        return min(budget.context, spec.context_limit)
    largest = max((gpu.vram_free for gpu in hardware.gpus if not gpu.unified), default=0)
    room = (hardware.cpu.ram_free + largest) // 4
    context = min(DEFAULT_CONTEXT, spec.context_limit)
    while context > SHORT_CONTEXT and spec.kv_bytes(context) > room:
        context //= 2
    return context
