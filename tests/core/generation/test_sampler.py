import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from core.errors import BrokenOutput
from core.events import Sampling
from core.generation.sampler import (
    FALLBACK,
    NUCLEI,
    PENALTY_TOKENS,
    Draw,
    TokenSampler,
    distribution,
    from_generation_config,
    largest,
    likeliest_id,
    penalized,
    resolve,
)

PLAIN = Draw(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=1, max_new_tokens=None)
HALVES = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8]).log()


def test_the_same_seed_draws_the_same_ids() -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0))
    draws = [[TokenSampler(replace(PLAIN, seed=seed))(logits, []) for _ in range(1)] for seed in range(40)]
    again = [[TokenSampler(replace(PLAIN, seed=seed))(logits, []) for _ in range(1)] for seed in range(40)]
    assert draws == again
    assert len({first for (first,) in draws}) > 10, "another seed draws otherwise"


def test_drawn_frequencies_are_the_probabilities() -> None:
    sample = TokenSampler(PLAIN)
    count = 4000
    counts = Counter(sample(HALVES, range(place)) for place in range(count))
    for token, probability in enumerate(HALVES.exp().tolist()):
        deviation = math.sqrt(count * probability * (1 - probability))
        assert abs(counts[token] - count * probability) < 4 * deviation


def test_temperature_sharpens_and_flattens() -> None:
    cold, _ = distribution(HALVES, replace(PLAIN, temperature=0.5))
    assert cold.tolist() == pytest.approx([16 / 22, 4 / 22, 1 / 22, 1 / 22])
    hot, _ = distribution(HALVES, replace(PLAIN, temperature=5.0))
    assert hot[0] < 0.35


@pytest.mark.parametrize("draw", [replace(PLAIN, temperature=0.0), replace(PLAIN, top_k=1), replace(PLAIN, top_p=0.0)])
def test_greedy_ways_take_the_likeliest(draw: Draw) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(3))
    assert {TokenSampler(replace(draw, seed=seed))(logits, []) for seed in range(20)} == {int(logits.argmax())}


@pytest.mark.parametrize(
    ("draw", "kept"),
    [
        (replace(PLAIN, top_k=3), 3),
        (replace(PLAIN, top_k=99), 4),
        (replace(PLAIN, top_p=0.5), 1),
        (replace(PLAIN, top_p=0.51), 2),
        (replace(PLAIN, top_p=0.75), 2),
        (replace(PLAIN, top_p=0.8), 3),
        (replace(PLAIN, min_p=0.5), 2),
        (replace(PLAIN, min_p=0.51), 1),
        (replace(PLAIN, min_p=1.0), 1),
        (replace(PLAIN, min_p=0.25), 4),
        (replace(PLAIN, top_k=2, top_p=0.66), 1),  # top-p applies within the top-k: 2/3 and 1/3
        (replace(PLAIN, top_k=2, top_p=0.67), 2),
    ],
)
def test_only_the_right_candidates_are_kept(draw: Draw, kept: int) -> None:
    probabilities, ids = distribution(HALVES, draw)
    assert ids.tolist()[:2] == [0, 1][:kept]
    assert len(ids) == kept
    assert float(probabilities.sum()) == pytest.approx(1)
    expected = HALVES.exp()[ids] / HALVES.exp()[ids].sum()
    assert torch.allclose(probabilities, expected)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.9999])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_the_short_cut_for_large_vocabularies_changes_nothing(top_p: float, scale: float) -> None:
    logits = scale * torch.randn(4 * NUCLEI[1] + 5, generator=torch.Generator().manual_seed(4))
    probabilities, ids = distribution(logits, replace(PLAIN, top_p=top_p))
    everything, order = torch.sort(torch.softmax(logits, -1), descending=True)
    kept = int((everything.cumsum(-1) - everything < top_p).sum())
    assert abs(len(ids) - kept) <= 1  # summation order differs
    assert torch.equal(ids[: kept - 1], order[: kept - 1])
    assert torch.allclose(probabilities[: kept - 1], (everything / everything[:kept].sum())[: kept - 1], atol=1e-6)


@pytest.mark.parametrize("min_p", [0.001, 0.2])
def test_few_likely_ids_of_many_are_found_without_sorting_all(min_p: float) -> None:
    logits = 4 * torch.randn(4 * NUCLEI[1] + 5, generator=torch.Generator().manual_seed(5))
    _, ids = distribution(logits, replace(PLAIN, min_p=min_p))
    everything, order = torch.sort(torch.softmax(logits, -1), descending=True)
    kept = int((everything >= min_p * everything[0]).sum())
    assert torch.equal(ids, order[:kept])


@pytest.mark.parametrize("count", [1, 7, 40])
@pytest.mark.parametrize("size", [31, 32, 40 * 32 * 8, 40 * 32 * 8 + 5])
def test_largest_scores_are_found_wherever_they_lie(count: int, size: int) -> None:
    for seed in range(10):
        scores = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        scores[-1] = 9.0  # after the last whole block
        values, places = largest(scores, min(count, size))
        assert torch.equal(values, torch.topk(scores, min(count, size)).values)
        assert torch.equal(scores[places], values)


@pytest.mark.parametrize("size", [1, 199, 512, 1000, 49_152])
def test_the_first_largest_score_is_found_wherever_it_lies(size: int) -> None:
    torch.manual_seed(size)
    for scores in (*torch.randn(40, size), *torch.randint(0, 3, (40, size)).float(), torch.arange(size) / size):
        assert likeliest_id(scores) == int(scores.argmax())
    masked = torch.full((size,), -torch.inf)
    masked[size // 2] = -5.0
    assert likeliest_id(masked) == size // 2


def test_nothing_cut_off_draws_from_the_whole_vocabulary() -> None:
    sample = TokenSampler(PLAIN)
    logits = torch.zeros(4 * NUCLEI[1])
    drawn = [sample(logits, range(place)) for place in range(400)]
    assert len(set(drawn)) > 380
    assert min(drawn) < 200
    assert max(drawn) > len(logits) - 200


def test_repetition_penalty_makes_seen_ids_less_likely() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 0.0])
    assert penalized(logits, [0, 1, 0], 2.0).tolist() == [1.0, -4.0, 1.0, 0.0]
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.0], "the model's logits stay as they are"
    assert TokenSampler(replace(PLAIN, temperature=0.0, repetition_penalty=3.0))(logits, [0]) == 2


def test_repetition_penalty_forgets_what_is_long_ago() -> None:
    logits = torch.ones(3)
    assert penalized(logits, [0, *([1] * PENALTY_TOKENS)], 2.0).tolist() == [1.0, 0.5, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_reported(bad: float) -> None:
    for draw in (PLAIN, replace(PLAIN, temperature=0.0)):
        with pytest.raises(BrokenOutput, match="not numbers"):
            TokenSampler(draw)(torch.tensor([0.0, bad, 1.0]), [])
    with pytest.raises(BrokenOutput):
        TokenSampler(PLAIN)(torch.full((4,), -math.inf), [])


def test_masked_ids_are_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0])
    sample = TokenSampler(PLAIN)
    assert {sample(logits, range(place)) for place in range(50)} == {1, 3}


def test_half_precision_logits_are_widened() -> None:
    logits = torch.tensor([1.0, 60000.0, 2.0], dtype=torch.float16)
    assert TokenSampler(replace(PLAIN, temperature=0.5))(logits, []) == 1


def test_wishes_come_before_the_model_and_the_model_before_the_fallback() -> None:
    model = from_generation_config({"temperature": 0.6, "top_k": 20, "do_sample": True})
    draw = resolve(Sampling(temperature=0.2), model)
    assert (draw.temperature, draw.top_k, draw.top_p) == (0.2, 20, FALLBACK.top_p)
    assert draw.seed != resolve(Sampling(), model).seed, "no seed asked for: each reply has its own"
    assert resolve(Sampling(seed=5), model).seed == 5


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Sampling()),
        ({"do_sample": False, "temperature": 0.6}, Sampling(temperature=0.0)),
        ({"temperature": 0.6, "top_p": None, "max_new_tokens": 20}, Sampling(temperature=0.6)),
        ({"temperature": "hot", "top_k": [1], "min_p": 0.05}, Sampling(min_p=0.05)),
        ({"temperature": 1e30, "top_k": -1, "top_p": math.nan, "repetition_penalty": 0}, Sampling()),
    ],
)
def test_generation_config_gives_defaults(config: dict[str, object], expected: Sampling) -> None:
    assert from_generation_config(config) == expected


@pytest.mark.parametrize("size", [300, 20_000])
def test_noise_is_of_its_own_for_every_place_and_token(size: int) -> None:
    """Draws from a flat distribution are uniform over tenths of the ids, and pairs of draws over pairs of tenths."""
    sample, logits = TokenSampler(PLAIN), torch.zeros(size)
    tenths = [sample(logits, range(place)) * 10 // size for place in range(4000)]
    pairs = Counter(pairwise(tenths))
    for counts, kinds in ((Counter(tenths), 10), (pairs, 100)):
        expected = sum(counts.values()) / kinds
        chi_square = sum((counts[key] - expected) ** 2 / expected for key in counts) + (kinds - len(counts)) * expected
        # Four standard deviations above the mean.
        assert chi_square < kinds + 4 * math.sqrt(2 * kinds)


def test_a_draft_guesses_the_draw_itself() -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 3
    sample = TokenSampler(replace(PLAIN, top_p=0.95, repetition_penalty=1.2))
    for place in range(20):
        token, confidence = sample.guess(logits, range(place))
        assert token == sample(logits, range(place))
        assert 0 < confidence <= 1
