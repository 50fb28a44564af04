"""Machine and model records for tests of decisions: true dimensions and plausible rates, without torch."""

from dataclasses import replace

from core.spec import Cpu, Gpu, Hardware, KernelRate, KvLayer, LinearSpec, Link, ModelSpec
from core.units import GIB
from core.weights.known_shapes import shape


def cpu(read: float, ram: int, free: int, cores: int = 8, gflops: float = 600e9) -> Cpu:
    """Return a CPU whose kernels use most of the memory bandwidth."""
    flops = (gflops * 0.2, gflops * 0.3, gflops * 0.6, gflops)
    return Cpu(
        name=f"{cores} cores",
        physical_cores=cores,
        logical_cores=2 * cores,
        isa=("avx2", "avx512"),
        ram_total=ram,
        ram_free=free,
        read_bytes_s=read,
        rates=(
            KernelRate("bf16", 0.6 * read, flops),
            KernelRate("fp16", 0.8 * read, flops),
            KernelRate("fp32", 0.9 * read, flops),
            KernelRate("int8", 0.9 * read, flops),
            KernelRate("int4", 0.8 * read, flops),
        ),
        threads=cores,
    )


def gpu(name: str, total: int, free: int, memory: float, flops: float, link: float, index: int = 0) -> Gpu:
    """Return a card whose link keeps 75 % and whose CPU keeps 85 % while both run."""
    return Gpu(
        name=name,
        index=index,
        vram_total=total,
        vram_free=free,
        bytes_s=memory,
        flops=flops,
        link=Link(link, 0.5 * link, link, 0.5 * link, 0.9 * link),
        cpu_under_copy=0.85,
        link_under_cpu=0.75,
    )


LAPTOP = Hardware(cpu(40e9, 16 * GIB, 10 * GIB))
DESKTOP = Hardware(
    cpu(60e9, 32 * GIB, 24 * GIB), (gpu("8 GB card", 8 * GIB, 7 * GIB, 270e9, 30e12, 24e9),), disk_bytes_s=2e9
)
A10 = Hardware(
    cpu(100e9, 128 * GIB, 110 * GIB, cores=16, gflops=1500e9),
    (gpu("A10", 24 * GIB, 23 * GIB, 600e9, 100e12, 30e9),),
    disk_bytes_s=2e9,
)
TWO_CARDS = Hardware(
    cpu(80e9, 64 * GIB, 56 * GIB, cores=12),
    (
        gpu("12 GB card", 12 * GIB, 11 * GIB, 360e9, 40e12, 12e9),
        gpu("24 GB card", 24 * GIB, 23 * GIB, 930e9, 80e12, 25e9, index=1),
    ),
)
MACHINES = {"laptop": LAPTOP, "desktop": DESKTOP, "a10": A10, "two cards": TWO_CARDS}


def simulated(vram: int, link: float, cpu_read: float = 40e9) -> Hardware:
    """Return a simulated card on the laptop's cores."""
    card = replace(
        gpu("simulated", vram, vram, cpu_read, 600e9, link),
        simulated=True,
        requested=True,
        shares_cores=True,
        kind="simulated",
        cpu_under_copy=0.8,
        link_under_cpu=1.0,
        rates=LAPTOP.cpu.rates,
    )
    return replace(LAPTOP, gpus=(card,))


def model(name: str) -> ModelSpec:
    """Return what the survey of a shape finds, derived by hand from its configuration."""
    config = shape(name)
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    width = config.get("head_dim", hidden // heads)
    kv_width = config.get("num_key_value_heads", heads) * width
    linears: list[LinearSpec] = []
    for layer in range(layers):
        linears += _layer(config, layer, heads * width, kv_width)
    tied = config.get("tie_word_embeddings", True)
    linears.append(LinearSpec("lm_head", config["vocab_size"], hidden, 10_000))
    embedding = 2 * hidden * config["vocab_size"]
    parameters = sum(item.parameters for item in linears) + (0 if tied else embedding // 2)
    return ModelSpec(
        name=name,
        architecture=config["architectures"][0],
        layers=layers,
        hidden=hidden,
        vocab=config["vocab_size"],
        context_limit=config["max_position_embeddings"],
        linears=tuple(linears),
        kv_layers=tuple(
            KvLayer(layer, 2 * 2 * kv_width, packed_per_token=2 * kv_width * 34 // 32) for layer in range(layers)
        ),
        resident_bytes=2 * hidden * (2 * layers + 1),
        embedding_bytes=embedding,
        head="lm_head",
        head_tied=tied,
        parameters=parameters,
    )


def without_heads(spec: ModelSpec) -> ModelSpec:
    """Return the same model with attention that cannot be divided by heads."""
    return replace(spec, linears=tuple(replace(one, attends=-1, heads=0) for one in spec.linears))


def _layer(config: dict[str, object], layer: int, width: int, kv_width: int) -> list[LinearSpec]:
    hidden, at = int(str(config["hidden_size"])), f"model.layers.{layer}"
    heads = 0 if "ffn_dim" in config or "sliding_window" in config else int(str(config.get("num_key_value_heads", 0)))
    attends = 10 * layer if heads else -1
    attention = [
        LinearSpec(f"{at}.self_attn.q", width, hidden, 10 * layer, layer),
        LinearSpec(f"{at}.self_attn.k", kv_width, hidden, 10 * layer, layer),
        LinearSpec(f"{at}.self_attn.v", kv_width, hidden, 10 * layer, layer),
        LinearSpec(f"{at}.self_attn.o", hidden, width, 10 * layer + 1, layer, attends=attends, heads=heads),
    ]
    return attention + _feed_forward(config, layer, hidden, at)


def _feed_forward(config: dict[str, object], layer: int, hidden: int, at: str) -> list[LinearSpec]:
    experts = int(str(config.get("num_experts", config.get("num_local_experts", 1))))
    if experts > 1:
        inner = int(str(config.get("moe_intermediate_size") or config["intermediate_size"]))
        active = int(str(config["num_experts_per_tok"]))
        return [
            LinearSpec(f"{at}.mlp.experts.gate_up", 2 * inner, hidden, 10 * layer + 2, layer, experts, active),
            LinearSpec(f"{at}.mlp.experts.down", hidden, inner, 10 * layer + 3, layer, experts, active),
        ]
    if "ffn_dim" in config:
        inner = int(str(config["ffn_dim"]))
        first = [LinearSpec(f"{at}.fc1", inner, hidden, 10 * layer + 2, layer)]
    else:
        inner = int(str(config["intermediate_size"]))
        at = f"{at}.mlp"
        first = [LinearSpec(f"{at}.{name}", inner, hidden, 10 * layer + 2, layer) for name in ("gate", "up")]
    return [*first, LinearSpec(f"{at}.down", hidden, inner, 10 * layer + 3, layer, after=10 * layer + 2)]
