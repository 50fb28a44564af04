"""Explains a plan to users: what was decided and why, in sentences with its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from core.sentence import joined, sentence
from core.spec import DECODE, PREFILL, ROUNDED, DeviceMemory, Hardware, ModelSpec, Plan
from core.units import format_memory, format_share

HOW = {"measured": "measured with this model", "derived": "from this computer's measured rates", "guess": "a guess"}
CONVERTED_WORDS = {"bf16": "16-bit numbers", "int8": "8-bit weights", "int4": "4-bit weights"}
FORMAT_COSTS = {"int8": "1 %", "int4": "12 %"}
"""Upper bounds of the rise in perplexity of a real model: SmolLM2-135M on tests/assets/english.txt, with permuted
columns. Its file has 4-bit weights itself, which unpermuted would lose less than others (2 %)."""
FORMAT_WORDS = {"bf16": "the weights as stored", "int8": "8-bit weights", "int4": "4-bit weights"}
IN_RAM, ON_CARD = "the computer's memory", "the graphics card"


def tok_s(rate: float) -> str:
    """Format a rate for users: '31', '4.2', '0.05'."""
    return f"{rate:.0f}" if rate >= 9.95 else f"{rate:.1f}" if rate >= 0.095 else f"{rate:.2f}"


def resident_share(plan: Plan, spec: ModelSpec) -> float:
    """Return the fraction of all weight bytes that lies in VRAM."""
    return _share(plan, spec, [linear.resident for linear in plan.linears], [linear.rows for linear in plan.linears])


def streamed_share(plan: Plan, spec: ModelSpec, bucket: int = DECODE) -> float:
    """Return the fraction of the weight bytes outside of VRAM that is streamed to the GPU in this phase."""
    shares = [linear.shares[bucket] for linear in plan.linears]
    return _share(plan, spec, [rows.streamed for rows in shares], [rows.streamed + rows.cpu for rows in shares])


def _share(plan: Plan, spec: ModelSpec, rows: Sequence[int], of: Sequence[int]) -> float:
    sizes = [
        spec.linear_bytes(item, plan.format) / one.rows for item, one in zip(spec.linears, plan.linears, strict=True)
    ]
    whole = sum(count * size for count, size in zip(of, sizes, strict=True))
    return sum(count * size for count, size in zip(rows, sizes, strict=True)) / max(1, whole)


def reason(plan: Plan, spec: ModelSpec, hardware: Hardware) -> str:
    """Return one sentence: where the weights lie and who computes."""
    if plan.gpu < 0:
        return _without_gpu(plan, spec, hardware)
    share = resident_share(plan, spec)
    if share >= 1:
        return "The whole model lies in the graphics card's memory."
    streamed = streamed_share(plan, spec)
    if share < 0.005 and streamed < 0.005 < streamed_share(plan, spec, PREFILL):
        return "The processor writes with weights from the computer's memory; the graphics card helps to read prompts."
    rest = "the processor computes the rest"
    if streamed >= 0.995:
        rest = "the rest is streamed to it for each token"
    elif streamed >= 0.005:
        rest = sentence(
            "of the rest the processor computes {} while {} is streamed to the card",
            format_share(1 - streamed),
            format_share(streamed),
        )
    return sentence("{} of the weights lie in the graphics card's memory; {}.", format_share(share), rest)


def format_reason(best: Plan, tried: Sequence[Plan]) -> str:
    """Return why `auto` chose this format, given the plans of all formats tried."""
    words = FORMAT_WORDS[best.format]
    others = [_rejected(plan) for plan in tried if plan.format != best.format]
    if not others:
        return sentence("Using {}: they fit and are fast enough, so nothing is lost.", words)
    return sentence("Using {}: {}.", words, joined("; ", others))


def too_big_or_busy(plan: Plan, idle: Plan, spec: ModelSpec, hardware: Hardware, limit: int | None) -> str:
    """Return why a plan does not fit well: because of the computer, of other programs at the moment, or of the user's
    `limit` of RAM in bytes.

    `idle` is the plan for the same computer with nothing else running.
    """
    if plan.fits == "no" and limit is not None and limit < hardware.cpu.ram_free:
        size = format_memory(spec.weight_bytes(plan.format))
        return sentence(
            "The model needs {} in this format, and more to compute; the limit is {} of memory.",
            size, format_memory(limit),
        )  # fmt: skip
    problem = _problem(plan, spec, hardware)
    if (idle.rank, idle.format != "int4") > (plan.rank, plan.format != "int4"):
        result = (
            sentence("about {} tokens per second", tok_s(idle.decode.likely)) if idle.fits != "no" else "it would run"
        )
        return sentence("{} Other programs are using memory now: with them closed, {}.", problem, result)
    if plan.fits == "no" or plan.from_disk:
        return sentence("{} It is too big for this computer.", problem)
    return problem


def figures(plan: Plan, spec: ModelSpec) -> list[str]:
    """Return sentences on speed, memory, and where the conversation is kept."""
    return [*_in_general(plan, spec), *_at_work(plan, spec)]


def _in_general(plan: Plan, spec: ModelSpec) -> Iterator[str]:
    """Yield what holds for every token: the format, the speed, and what lies where."""
    if spec.stored_as:
        yield _stored(plan, spec)
    if plan.fits != "no":
        yield _expected(plan)
    if plan.format in FORMAT_COSTS and not spec.stored_as:
        yield _cost(plan)
    for memory in plan.memory:
        yield sentence("In {}: {}.", IN_RAM if memory.device == "cpu" else ON_CARD, _memory_words(memory))
    if plan.head_copy:
        yield _head_copy(plan)
    if spec.sight_bytes:
        where, size = IN_RAM if plan.sight_gpu < 0 else ON_CARD, format_memory(spec.sight_bytes)
        yield sentence("For pictures {} more are taken in {}, when the first one comes.", size, where)
    on_card = sum(device >= 0 for device in plan.kv_devices)
    if 0 < len(plan.kv_devices) != on_card and plan.gpu >= 0:
        where = "partly in the computer's memory" if on_card else "in the computer's memory"
        context = f"{plan.context:,}"
        yield sentence("The conversation's memory of {} tokens is kept {}, so that more weights fit.", context, where)


def _at_work(plan: Plan, spec: ModelSpec) -> Iterator[str]:
    """Yield how a token and a prompt are computed, as far as it is not the usual way."""
    if plan.divides_heads:
        yield _by_heads(plan)
    if plan.host_layers:
        count = len(plan.host_layers)
        yield sentence("While it writes, {} of {} layers are computed by the processor alone.", count, spec.layers)
    if plan.in_place:
        yield "The graphics card shares the computer's memory and reads the weights there, without copies."
    if plan.captured:
        yield _captured(plan, spec)
    if part := _held_experts(plan, spec):
        used = format_share(plan.profile.covered(part))
        yield sentence(
            "The card holds {} of the experts; in earlier replies they were {} of those used.", format_share(part), used
        )
    if (share := streamed_share(plan, spec, PREFILL)) >= 0.005:
        yield sentence("While it reads prompts, {} of the other weights are streamed to the card.", format_share(share))


def _by_heads(plan: Plan) -> str:
    ram, card = (format_memory(memory.kv_cache) for memory in plan.memory)
    return sentence(
        "Attention is divided by heads: the graphics card and the processor read their parts of the conversation's "
        "memory, {} and {}, at the same time.",
        card,
        ram,
    )


def _held_experts(plan: Plan, spec: ModelSpec) -> float:
    """Return the fraction of experts on the card in layers with some there; 0 if their use was not counted."""
    pairs = [pair for pair in zip(plan.linears, spec.linears, strict=True) if pair[1].experts is not None]
    some = [linear for linear, _ in pairs if 0 < linear.resident < linear.rows]
    if not some or not plan.profile.hottest:
        return 0.0
    return sum(linear.resident for linear in some) / sum(linear.rows for linear in some)


def _stored(plan: Plan, spec: ModelSpec) -> str:
    """Return what happens to weights that are already quantised in the files."""
    words, kept = CONVERTED_WORDS[plan.format], spec.kept_share(plan.format)
    if kept >= 0.995 and any(linear.stored in ROUNDED for linear in spec.linears):
        return sentence(
            "The files have the weights quantised ({}); they are kept, but for less than 0.5 %.", spec.stored_as
        )
    if kept >= 0.995:
        return sentence("The files have the weights quantised ({}); they are kept exactly.", spec.stored_as)
    if kept < 0.005:
        return sentence("The files have the weights quantised ({}); they are converted to {}.", spec.stored_as, words)
    return sentence(
        "The files have the weights quantised ({}); {} of them are kept exactly, the rest is converted to {}.",
        spec.stored_as, format_share(kept), words,
    )  # fmt: skip


def _cost(plan: Plan) -> str:
    words, rise = FORMAT_WORDS[plan.format], FORMAT_COSTS[plan.format]
    return sentence(
        "What {} cost a small model (SmolLM2, 135 million weights): perplexity on English rose by less than {}.",
        words,
        rise,
    )


def _head_copy(plan: Plan) -> str:
    return sentence(
        "The output head is kept a second time in 4 bits ({}): a token reads that first, and of the head itself only "
        "what could be the next word.",
        format_memory(plan.head_copy),
    )


def _expected(plan: Plan) -> str:
    low, high, prompts = tok_s(plan.decode.low), tok_s(plan.decode.high), tok_s(plan.prefill.likely)
    return sentence(
        "Expected: {} to {} tokens per second, prompts at {} ({}).", low, high, prompts, HOW[plan.confidence]
    )


def _captured(plan: Plan, spec: ModelSpec) -> str:
    return sentence(
        "While it writes, the graphics card replays recorded work in {} of {} layers; {} are set aside for that.",
        len(plan.captured),
        spec.layers,
        format_memory(plan.graph_bytes),
    )


def _memory_words(memory: DeviceMemory) -> str:
    parts = {"weights": memory.weights, "conversation": memory.kv_cache, "workspace": memory.workspace + memory.staging}
    words = ", ".join(f"{format_memory(size)} {name}" for name, size in parts.items() if size)
    return sentence("{}; {} were free", words, format_memory(memory.free_before))


def _without_gpu(plan: Plan, spec: ModelSpec, hardware: Hardware) -> str:
    if not hardware.gpus:
        return "Everything runs on the processor: there is no graphics card that can be used."
    if spec.weight_bytes(plan.format) < max(gpu.vram_free for gpu in hardware.gpus):
        return "Everything runs on the processor: it is expected to be faster alone than with the graphics card."
    return "Everything runs on the processor: the graphics card has too little free memory to speed this model up."


def _rejected(plan: Plan) -> str:
    words = FORMAT_WORDS[plan.format]
    if plan.fits == "no":
        return sentence("{} do not fit", words)
    if plan.from_disk:
        return sentence("{} do not fit in memory", words)
    return sentence("{} would give about {} tokens per second", words, tok_s(plan.decode.likely))


def _problem(plan: Plan, spec: ModelSpec, hardware: Hardware) -> str:
    size = format_memory(spec.weight_bytes(plan.format))
    there = sentence("{} of memory are free", format_memory(hardware.cpu.ram_free))
    if plan.fits == "no" and not plan.from_disk:
        return sentence("The model needs {} in this format, and {}.", size, there)
    if plan.from_disk:
        missing = format_memory(plan.from_disk)
        speed = tok_s(plan.decode.likely)
        return sentence(
            "{} of its {} must be read from the disk for every token: about {} tokens per second.", missing, size, speed
        )
    return sentence("It runs, slowly: about {} tokens per second.", tok_s(plan.decode.likely))
