"""torch's own products with quantised weights, as on Intel's and Apple's cards: operators that are registered for the
second device. Those for 4 bits read the nibbles of a weight in an order that is theirs alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from core.accelerators.card_checks import try_card
from core.generation.generate import DrawnToken, generate
from core.kernels import torch_products
from core.kernels.matmul import host_matmul
from core.kernels.quantize import quantize
from core.kernels.quantized_weight import QuantizedWeight
from core.kernels.torch_products import TAKEN, try_int4, try_int8
from core.model.device_copies import Uploads
from core.model.filling import fill
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel
from core.model.model_source import open_source
from core.model.placement import DevicePlacement
from core.model.spec_cache import specification
from core.offload.host_weight import DeviceRows, HostWeight
from core.spec import LAYOUTS, Abilities, Format, Storage, parse_abilities
from tests.core.families import make_model
from tests.core.greedy import random_prompt, transformers_tokens
from tests.core.kernels.test_storages import made
from tests.core.offload.test_hetero_linear import TOKENS, Bench, rearrange
from tests.core.second_device import SecondCard, SecondDevice
from tests.core.second_device.placed import Placed, whole
from tests.core.second_device.test_engine import thirds
from tests.core.weights.stored.packers import FORMATS
from tests.core.weights.stored.tiny_stored import in_fp32, reference, write_stored

EIGHT = "_weight_int8pack_mm"
APPLE, INTEL = "_weight_int4pack_mm", "_weight_int4pack_mm_with_scales_and_zeros"
TYPES = (torch.float32, torch.bfloat16, torch.float16)
PLACES = torch.cat([torch.randperm(32, generator=torch.Generator().manual_seed(n)) + 32 * n for n in range(4)])
"""The column that each nibble of a run of 128 holds, in these operators' opinion."""
COUNT, PROMPT = 24, random_prompt(40)

Product = Callable[..., Tensor]


def values(packed: Tensor) -> Tensor:
    """Return q (N, K) of words (..., of which the first size is N or N / 8)."""
    both = packed.reshape(-1).view(torch.uint8)
    read = torch.stack((both & 15, both >> 4), dim=-1).flatten().unflatten(0, (-1, len(PLACES)))
    return read[:, columns_at(packed.device)]


@cache
def columns_at(device: torch.device) -> Tensor:
    return PLACES.argsort().to(device)  # before a capture, which copies nothing


def multiplied(x: Tensor, q: Tensor, group: int, scales: Tensor, zeros: Tensor) -> Tensor:
    """Return x (M, K) times the transposed (q - 8) * scale + zero, whose scales and zeros are (groups, N), in x's
    type."""
    wide = (q.float().view(scales.shape[1], -1, group) - 8) * scales.T[:, :, None].float() + zeros.T[:, :, None].float()
    return (x.float() @ wide.flatten(1).T).to(x.dtype)


def with_float_zeros(x: Tensor, packed: Tensor, group: int, both: Tensor) -> Tensor:
    """Compute what torch's sources say of Apple's operator."""
    assert all(one.is_contiguous() for one in (x, packed, both))
    assert (packed.dim(), packed.dtype, both.dtype) == (4, torch.int32, x.dtype)
    assert both.shape == (x.shape[1] // group, 8 * packed.shape[0], 2)
    return multiplied(x, values(packed), group, both[..., 0], both[..., 1])


def with_whole_zeros(x: Tensor, packed: Tensor, group: int, scales: Tensor, zeros: Tensor) -> Tensor:
    """Compute what torch's sources say of Intel's operator, which takes 16 bits only."""
    if x.dtype == torch.float32:
        raise RuntimeError("expected 16 bits")
    assert all(one.is_contiguous() for one in (x, packed, scales, zeros))
    assert (packed.dim(), packed.dtype, scales.dtype, zeros.dtype) == (2, torch.int32, x.dtype, torch.int8)
    assert scales.shape == zeros.shape == (x.shape[1] // group, packed.shape[0])
    return in_more_bits(x, packed, group, scales, zeros)


def in_more_bits(x: Tensor, packed: Tensor, group: int, scales: Tensor, zeros: Tensor) -> Tensor:
    """Take 32 bits, too, in which tokens can be compared."""
    return multiplied(x, values(packed), group, scales, (8 - zeros.float()) * scales.float())


@pytest.fixture
def register(card: SecondCard) -> Iterator[Callable[[str, Product], Counter[Any]]]:
    """Provide a function that makes the device have an operator, and returns a count of its calls by rows of x."""
    columns_at.cache_clear()
    held = [torch.library.Library("aten", "IMPL")]

    def put(name: str, product: Product) -> Counter[Any]:
        calls = Counter[Any]()

        def counted(x: Tensor, *rest: Any) -> Tensor:
            calls[len(x)] += 1
            return product(x, *rest)

        held[0].impl(name, counted, "PrivateUse1")
        return calls

    yield put
    held.clear()  # its operators go with it


def tried(card: SecondCard) -> SecondCard:
    """Return the card as it is opened after a trial."""
    abilities = Abilities(products=(*try_int8(card.device), *try_int4(card.device)))
    return SecondCard(card.told, parse_abilities(json.loads(json.dumps(asdict(abilities)))))


@pytest.fixture
def always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators of these tests are slow."""
    monkeypatch.setattr(torch_products, "faster_up_to", lambda *_: torch_products.MOST_FEW)


def on(card: SecondCard, weight: QuantizedWeight) -> DeviceRows:
    return Uploads(card).rows(HostWeight(host_matmul(weight)), 0, weight.shape[0])


def same(card: SecondCard, rows: DeviceRows, x: Tensor, exact: Tensor) -> bool:
    """Return whether a product is that of the exact weight (N, K), but for rounding."""
    found, expected = card.to_host(rows.linear(card.to_device(x))).result().float(), x.float() @ exact.T
    allowed = 1e-5 if x.dtype == torch.float32 else 0.01
    return bool((found - expected).abs().max() <= allowed * expected.abs().max())


@pytest.mark.usefixtures("always_faster")
@pytest.mark.parametrize("storage", sorted(TAKEN))
@pytest.mark.parametrize(("name", "product"), [(APPLE, with_float_zeros), (INTEL, with_whole_zeros)])
def test_weights_are_multiplied_as_they_lie(
    card: SecondCard, register: Callable[..., Counter[Any]], name: str, product: Product, storage: Storage
) -> None:
    """One and more inputs, padded columns, and inputs and rows that the operator does not take."""
    calls = register(name, product)
    card = tried(card)
    torch.manual_seed(0)
    for rows, columns in ((48, 128), (75, 320), (37, 300)):
        weight, exact = made(storage, rows, -(-columns // LAYOUTS[storage].group) * LAYOUTS[storage].group)
        there = on(card, weight)
        calls.clear()
        for m, dtype in ((1, torch.bfloat16), (5, torch.float16), (16, torch.float32), (21, torch.float32)):
            assert same(card, there, torch.randn(m, weight.shape[1]).to(dtype), exact)
        assert calls.keys() >= {1, 5}
        assert (16 in calls) == (name == APPLE)
    assert calls.total() == (3 if name == APPLE else 2), "further rows are dequantised"


def test_code_books_and_groups_of_16_are_dequantised(card: SecondCard, register: Callable[..., Counter[Any]]) -> None:
    calls = register(APPLE, with_float_zeros)
    card = tried(card)
    calls.clear()
    others = [name for name, layout in LAYOUTS.items() if layout.bits == 4 and (layout.codes or layout.group < 32)]
    assert set(others) == {name for name, layout in LAYOUTS.items() if layout.bits == 4} - TAKEN
    assert all(card.products(storage) is None for storage in others)
    assert not calls


def raising(*_: Any) -> Tensor:
    raise RuntimeError("not for this device")


def by_columns(x: Tensor, packed: Tensor, group: int, both: Tensor) -> Tensor:
    """Read tiles of several rows, as NVIDIA's operator does."""
    tiled = packed.flatten(2).transpose(1, 2).contiguous().view(packed.shape)
    return with_float_zeros(x, tiled, group, both)


def unsigned(x: Tensor, packed: Tensor, group: int, both: Tensor) -> Tensor:
    return with_float_zeros(x, packed, group, torch.stack((both[..., 0], both[..., 0] * 8), dim=-1))


def one_of_few_rows(x: Tensor, packed: Tensor, group: int, both: Tensor) -> Tensor:
    read = x[:1].expand(len(x), -1).contiguous() if len(x) <= 16 else x
    return with_float_zeros(read, packed, group, both)


@pytest.mark.usefixtures("always_faster")
@pytest.mark.parametrize("product", [raising, by_columns, unsigned, one_of_few_rows])
def test_an_operator_that_fails_or_is_wrong_is_not_used(
    card: SecondCard, register: Callable[..., Counter[Any]], product: Product
) -> None:
    calls = register(APPLE, product)
    card = tried(card)
    weight, exact = made("int4", 48, 256)
    rows = on(card, weight)
    assert card.products("int4") is None
    calls.clear()
    assert same(card, rows, torch.randn(2, 256).bfloat16(), exact)
    assert not calls


@pytest.mark.usefixtures("always_faster")
def test_a_type_in_which_it_rounds_is_not_used(card: SecondCard, register: Callable[..., Counter[Any]]) -> None:
    def rounding(x: Tensor, packed: Tensor, group: int, both: Tensor) -> Tensor:
        return with_float_zeros(x.bfloat16(), packed, group, both.bfloat16()).to(x.dtype)

    register(APPLE, rounding)
    products = tried(card).products("int4")
    assert products is not None
    assert [products.takes(torch.ones(1, 128, dtype=dtype)) for dtype in TYPES] == [False, True, True]


@pytest.mark.parametrize(("slow_from", "most"), [(1, 0), (4, 1), (16, 4), (99, 16)])
def test_the_faster_way_is_taken(
    card: SecondCard, register: Callable[..., Counter[Any]], slow_from: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator takes longer than dequantising from so many inputs on."""
    calls, measured = register(APPLE, with_float_zeros), torch_products.seconds_of

    def seconds(work: Callable[[Tensor], Tensor], x: Tensor) -> float:
        before = calls.total()
        assert measured(work, x) > 0
        return 1.0 if calls.total() == before else 2.0 if len(x) >= slow_from else 0.5

    monkeypatch.setattr(torch_products, "SIDE", 256)
    monkeypatch.setattr(torch_products, "seconds_of", seconds)
    products = tried(card).products("int4")
    taken = [] if products is None else [m for m in range(1, 18) if products.takes(torch.ones(m, 1))]
    assert taken == [*range(1, most + 1)]


@pytest.mark.usefixtures("always_faster")
def test_a_weight_takes_no_memory_twice(
    card: SecondCard, register: Callable[..., Counter[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither from the first product on, nor, beyond a bound, while one is computed."""
    register(APPLE, lambda x, packed, group, both: x.new_zeros(len(x), both.shape[1]))
    monkeypatch.setattr(torch_products, "agrees", lambda *_: True)
    monkeypatch.setattr(torch_products, "SCALES_BYTES", 1 << 16)
    card = tried(card)
    weight, _ = made("int4", 4096, 1024)
    before = card.memory().used
    rows, x = on(card, weight), card.to_device(torch.randn(1, 1024).bfloat16())
    there = card.memory().used
    assert there - before < 1.05 * weight.nbytes
    card.reset_peak()
    rows.linear(x)
    card.synchronize()
    assert card.memory().used == there
    assert card.memory().peak - there < 3 * (1 << 16)


def test_rows_of_8_bits_that_the_operator_does_not_take_are_dequantised(
    card: SecondCard, register: Callable[..., Counter[Any]]
) -> None:
    """Apple's takes multiples of 32."""

    def product(x: Tensor, data: Tensor, scales: Tensor) -> Tensor:
        if data.shape[0] % 32 or data.shape[1] % 32:
            raise RuntimeError("expected multiples of 32")
        return (x.float() @ data.float().T * scales.float()).to(x.dtype)

    calls = register(EIGHT, product)
    card = tried(card)
    weight = quantize(torch.randn(75, 200).bfloat16(), "int8")
    rows = on(card, weight)
    calls.clear()
    assert same(card, rows, torch.randn(3, 200).bfloat16(), weight.dequantize(torch.float32))
    assert calls == {3: 1}


@pytest.mark.usefixtures("always_faster")
def test_a_trial_of_the_card_says_so(card: SecondCard, register: Callable[..., Counter[Any]]) -> None:
    assert [one.storage for one in try_card(card.device).abilities.products] == ["int8"]
    register(APPLE, with_float_zeros)
    assert {one.storage for one in try_card(card.device).abilities.products} == {"int8", *TAKEN}


def reply(folder: Path, format: Format, card: SecondCard) -> tuple[list[int], dict[str, Tensor]]:
    """Return greedy tokens of a model in thirds on the device, by the processor in fp32, and its linears' weights."""
    source = open_source(folder)
    spec = specification(source.module, source.name, folder / "cache", source.stored, source.stored_as)
    list(fill(source.module, source.weights))
    weights = HostWeights(source, spec, format, in_fp32(), folder / "cache")
    list(weights.make())
    placement = DevicePlacement(
        source.module, weights, plan := thirds(spec, 0, kv_on_device=True), card, spec.kv_layers
    )
    list(placement.apply(plan))
    model, cache = LanguageModel(source.module, placement), placement.make_cache(source.module.config, plan)
    steps = generate(model, cache, PROMPT, lambda logits, _: int(logits.argmax()), bool, 16)
    drawn = (step.id for step in steps if isinstance(step, DrawnToken))
    tokens = list(islice(drawn, COUNT // 2))
    rearrange(model, cache, thirds(spec, 1, kv_on_device=False))
    tokens += islice(drawn, COUNT // 2)
    placement.close()
    card.close()
    return tokens, {one.name: weights[one.name][0].weight.dequantize(torch.float32) for one in spec.linears}


@pytest.mark.usefixtures("always_faster")
def test_same_tokens_as_transformers(card: SecondCard, register: Callable[..., Counter[Any]], tmp_path: Path) -> None:
    """The weights in int4 have no file that transformers reads: they are put into its model."""
    calls = register(APPLE, with_float_zeros)
    card = tried(card)
    folder = make_model("llama", tmp_path, tie_word_embeddings=False)
    found, weights = reply(folder, "int4", card)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, weight in weights.items():
        theirs.get_submodule(name).weight.data = weight
    assert found == transformers_tokens(theirs, PROMPT, COUNT)
    assert len(set(found)) > 3
    assert calls[1] > COUNT


@pytest.mark.skipif(not hasattr(torch.accelerator, "Graph"), reason="this torch has no graphs for all")
@pytest.mark.usefixtures("always_faster")
@pytest.mark.parametrize(("name", "product"), [(APPLE, with_float_zeros), (INTEL, in_more_bits)])
def test_captured_layers_give_the_same_tokens(
    second: SecondDevice, card: SecondCard, llama: Bench, register: Callable[..., Counter[Any]], name: str,
    product: Product,
) -> None:  # fmt: skip
    calls, replies, counts = register(name, product), [], []
    card = tried(card)
    for captured in (False, True):
        calls.clear()
        placed = Placed(llama, card, whole(llama.spec, captured=captured), "int4")
        replies.append(list(placed.draw(llama.prompt, TOKENS)))
        placed.close(card)
        counts.append(calls[1])
    assert replies[0] == replies[1]
    assert second.get("replays") > TOKENS // 2
    assert counts[1] < counts[0] // 2


@pytest.mark.usefixtures("always_faster")
@pytest.mark.parametrize("name", ["gptq", "awq", "gptq in order, zero points", "compressed 4 bits"])
def test_same_tokens_as_transformers_with_weights_as_stored(
    card: SecondCard, register: Callable[..., Counter[Any]], tmp_path: Path, name: str
) -> None:
    calls = register(APPLE, with_float_zeros)
    card = tried(card)
    exact = write_stored(tmp_path / "stored", FORMATS[name])
    found, _ = reply(tmp_path / "stored", "bf16", card)
    assert found == reference(tmp_path / "stored", exact, PROMPT, COUNT)
    assert len(set(found)) > 3
    assert calls[1] > COUNT
