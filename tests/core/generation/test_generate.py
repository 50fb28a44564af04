import pytest

from core.events import Prefill, Sampling, never
from core.generation.generate import DrawnToken, generate
from core.generation.sampler import TokenSampler, resolve
from core.model.language_model import ForwardStopped
from tests.core.families import make_model
from tests.core.greedy import GREEDY, GreedyPath, random_prompt

PROMPT = random_prompt(50)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> GreedyPath:
    return GreedyPath(make_model("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(autouse=True)
def _empty_cache(path: GreedyPath) -> None:
    path.cache.reset()


def steps(path: GreedyPath, prompt: list[int], count: int, **options: int) -> list[Prefill | DrawnToken]:
    made = generate(path.model, path.cache, prompt, TokenSampler(resolve(GREEDY, Sampling())), never, **options)
    return [next(made) for _ in range(count)]


def test_the_prompt_is_read_in_chunks_with_progress(path: GreedyPath) -> None:
    events = steps(path, PROMPT, 5, chunk_tokens=20)
    assert events[:4] == [Prefill(done, 50, 0) for done in (0, 20, 40, 50)]
    assert isinstance(events[4], DrawnToken)


def test_what_is_cached_is_not_read_again(path: GreedyPath) -> None:
    steps(path, PROMPT, 3)
    assert path.cache.tokens == PROMPT
    assert steps(path, [*PROMPT, 3, 4], 2) == [Prefill(50, 52, 50), Prefill(52, 52, 50)]
    assert steps(path, PROMPT, 2) == [Prefill(49, 50, 49), Prefill(50, 50, 49)]


def test_only_tokens_that_were_read_are_in_the_cache(path: GreedyPath) -> None:
    *_, first, second = steps(path, PROMPT, 4)
    assert isinstance(first, DrawnToken)
    assert isinstance(second, DrawnToken)
    assert path.cache.tokens == [*PROMPT, first.id]


@pytest.mark.parametrize("asked", [1, 2, 3, 5, 8])
def test_stopping_in_the_prompt_leaves_a_cache_that_can_be_used(path: GreedyPath, asked: int) -> None:
    """`stop` is checked before each layer: three times per pass here."""
    expected = GreedyPath.tokens(path, PROMPT, 12)
    path.cache.reset()
    questions = iter(range(1, 100))
    made = generate(
        path.model, path.cache, PROMPT, TokenSampler(resolve(GREEDY, Sampling())), lambda: next(questions) >= asked, 20
    )
    with pytest.raises(ForwardStopped):
        for _ in made:
            pass
    assert len(path.cache.tokens) == 20 * ((asked - 1) // 3)
    assert path.tokens(PROMPT, 12) == expected
    assert path.reused == 20 * ((asked - 1) // 3)


def test_stopping_while_drawing_leaves_a_cache_that_can_be_used(path: GreedyPath) -> None:
    expected = path.tokens(PROMPT, 12)
    path.cache.reset()
    questions = iter(range(1, 100))
    made = generate(
        path.model, path.cache, PROMPT, TokenSampler(resolve(GREEDY, Sampling())), lambda: next(questions) > 3 + 4 * 3
    )
    drawn = [next(made) for _ in range(7)][2:]
    assert drawn == [DrawnToken(token) for token in expected[:5]]
    with pytest.raises(ForwardStopped):
        next(made)
    assert path.cache.tokens == [*PROMPT, *expected[:4]]
    assert path.tokens(PROMPT, 12) == expected
