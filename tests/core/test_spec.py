import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.kernels.quantize import quantize
from core.planning.planner import place
from core.spec import (
    BUCKET_LIMITS,
    BUCKET_NAMES,
    BUCKET_TIMED,
    BUCKET_TOKENS,
    FORMATS,
    Budget,
    KvLayer,
    LinearSpec,
    ModelSpec,
    Rows,
    bucket,
    row_bytes,
)
from core.weights.known_shapes import SHAPES, shape
from tests.core.machines import DESKTOP, model


@pytest.mark.parametrize(("tokens", "index"), [(1, 0), (2, 1), (16, 1), (17, 2), (64, 2), (65, 3), (100_000, 3)])
def test_buckets(tokens: int, index: int) -> None:
    assert bucket(tokens) == index


def test_each_bucket_has_its_example() -> None:
    assert [bucket(tokens) for tokens in BUCKET_TOKENS] == [0, 1, 2, 3]
    assert len(BUCKET_NAMES) == len(BUCKET_LIMITS) + 1


def test_kernels_are_timed_in_each_bucket() -> None:
    assert [bucket(rows) for rows in BUCKET_TIMED] == [0, 1, 2, 3]


@given(st.integers(1, 9000))
def test_rows_are_as_long_as_the_kernels_keep_them(columns: int) -> None:
    import torch

    weight = torch.ones(1, columns)
    for format in ("int8", "int4"):
        assert quantize(weight, format).row_bytes == row_bytes(format, columns)
    for dtype, storage in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
        assert quantize(weight.to(dtype), "bf16").row_bytes == row_bytes(storage, columns)


def test_experts_count_as_often_as_they_are() -> None:
    linear = LinearSpec("experts", 100, 64, 0, 0, experts=8, active=2)
    assert linear.nbytes("bf16") == 8 * 100 * 128
    assert linear.touched(1) == pytest.approx(0.25)
    assert linear.touched(2) == pytest.approx(1 - 0.75**2)
    assert linear.touched(512) == pytest.approx(1.0)
    assert LinearSpec("dense", 100, 64, 0).touched(1) == 1.0


def test_a_windows_cache_stops_growing() -> None:
    assert KvLayer(0, 100).nbytes(5000) == 500_000
    assert KvLayer(0, 100, window=128, state_bytes=7).nbytes(5000) == 12_807
    assert KvLayer(0, 100, window=128).nbytes(50) == 5000


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.2-1b", 1.236),
        ("llama-3.1-8b", 8.03),
        ("opt-30b", 29.97),
        ("qwen3-30b-a3b", 30.5),
        ("gpt-oss-20b", 20.9),
    ],
)
def test_shapes_have_their_true_size(name: str, billions: float) -> None:
    assert model(name).parameters / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_knows_every_shape(name: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(**shape(name))
    assert config.num_hidden_layers == shape(name)["num_hidden_layers"]
    assert config.vocab_size == shape(name)["vocab_size"]


def test_a_shape_may_be_changed_by_whoever_asked_for_it() -> None:
    shape("opt-1.3b")["vocab_size"] = 7
    assert shape("opt-1.3b")["vocab_size"] == 50272


def test_an_unknown_shape_is_named_with_the_known_ones() -> None:
    from core.errors import ModelNotFound

    with pytest.raises(ModelNotFound, match=r"llama-3\.2-1b"):
        shape("llama-9")


def test_plans_cross_processes() -> None:
    plan = place(model("llama-3.2-1b"), DESKTOP, Budget())
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_a_plan_answers_by_tokens_and_name() -> None:
    plan = place(model("llama-3.1-8b"), DESKTOP, Budget(format="bf16"))
    head = plan.by_name["lm_head"]
    assert head.at(1) == head.decode
    assert head.at(512) == head.prefill
    assert Rows(1, 2, 3).total == 6


def in_transformers_words(spec: ModelSpec) -> ModelSpec:
    named = (one if one.name == spec.head else replace(one, name=f"{one.name}_proj") for one in spec.linears)
    return replace(spec, linears=tuple(named))


def test_what_4_bits_would_harm_most_keeps_6() -> None:
    spec = in_transformers_words(model("llama-3.1-8b"))
    storages = {linear.name: spec.storage(linear, "int4") for linear in spec.linears}
    names = ("lm_head", "model.layers.9.self_attn.v_proj", "model.layers.9.self_attn.q_proj")
    assert tuple(storages[name] for name in names) == ("int6", "int6", "int4")
    downs = [layer for layer in range(32) if storages[f"model.layers.{layer}.mlp.down_proj"] == "int6"]
    assert downs == [0, 1, 2, 3, 7, 11, 15, 19, 23, 27, 28, 29, 30, 31]
    assert {spec.storage(linear, "int8") for linear in spec.linears} == {"int8"}


def test_4_bits_take_no_more_than_llama_cpp_s_medium_mixture() -> None:
    """Q4_K_M of the same shape: 4.5 bits, and 6.5625 for the head and in half of the layers for v and down."""
    spec = in_transformers_words(model("llama-3.2-1b"))
    mixture = 0.0
    for linear in spec.linears:
        more = linear.name == spec.head or linear.layer in (0, 1, 4, 7, 10, 13, 14, 15)
        finer = more and linear.name.endswith((".v_proj", ".down_proj", spec.head))
        mixture += linear.parameters * (6.5625 if finer else 4.5) / 8
    assert spec.weight_bytes("int4") <= mixture


def test_nothing_is_kept_in_more_than_it_was_stored() -> None:
    spec = model("llama-3.1-8b")
    stored = replace(spec.linears[0], stored="mxfp4")
    assert [spec.storage(stored, format) for format in FORMATS] == ["mxfp4"] * 3
    assert spec.storage(replace(stored, stored="int6k16"), "int4") == "int4"
    assert not replace(spec, linears=(stored, *spec.linears[1:])).mapped("bf16")
    assert spec.mapped("bf16")


@pytest.mark.parametrize("format", FORMATS)
def test_weights_shrink_with_the_format(format: str) -> None:
    spec = model("llama-3.1-8b")
    layers = [linear for linear in spec.linears if linear.name != spec.head]
    size = sum(spec.linear_bytes(one, format) for one in layers) / sum(one.parameters for one in layers)
    assert size == pytest.approx({"bf16": 2.0, "int8": 1.0, "int4": 0.603}[format], rel=0.01)
