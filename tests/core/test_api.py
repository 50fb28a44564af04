"""The engine as a library: the same model as on the command line, with errors that are raised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hetegen
from core.events import Loading
from tests.core.tiny_tokenizer import scripted_model

ASK = [hetegen.Message("user", "hi")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_model(tmp_path_factory.mktemp("scripted"), ASK, ["<think>hm</think>Hello 😀."])


def test_stream_yields_the_answer_and_ends_with_all_of_it(folder: Path) -> None:
    with hetegen.load(folder, threads=1) as model:
        reply, pieces = model.stream("hi", temperature=0), []
        try:
            while True:
                pieces.append(next(reply))
        except StopIteration as end:
            answer = end.value
    assert "".join(pieces) == answer.text == "Hello 😀."
    assert answer.reasoning.strip() == "hm"
    assert answer.finish_reason == "stop"
    assert answer.stats.new_tokens > 0


def test_generate_takes_records_dicts_or_a_question(folder: Path) -> None:
    with hetegen.load(folder, threads=1) as model:
        texts = {
            model.generate(messages, temperature=0).text
            for messages in ("hi", ASK, [{"role": "user", "content": "hi"}])
        }
        again = model.generate("hi", temperature=0, max_new_tokens=2)
    assert texts == {"Hello 😀."}
    assert (again.finish_reason, again.stats.new_tokens) == ("length", 2)


def test_a_message_without_content_is_refused(folder: Path) -> None:
    with hetegen.load(folder, threads=1) as model, pytest.raises(hetegen.HeteGenError, match="role"):
        model.generate([{"text": "hi"}])


def test_a_model_that_is_not_there_is_raised(tmp_path: Path) -> None:
    with pytest.raises(hetegen.HeteGenError):
        hetegen.load(tmp_path / "nothing")


def test_a_closed_model_is_raised(folder: Path) -> None:
    with hetegen.load(folder, threads=1) as model:
        pass
    with pytest.raises(hetegen.HeteGenError, match="No model is loaded"):
        model.generate("hi")


def test_sizes_are_text_or_bytes(folder: Path) -> None:
    # A fixed format: which one is fast enough depends on the machine's load.
    plans = [hetegen.plan("shape:llama-3.2-1b", ram=ram, context=512, format="int8") for ram in ("3GiB", 3 << 30)]
    assert plans[0].memory[0].used == plans[1].memory[0].used
    with pytest.raises(hetegen.HeteGenError):
        hetegen.plan(folder, ram="three")


def test_keys_and_values_may_be_kept_in_8_bits(folder: Path) -> None:
    plain, packed = (hetegen.plan(folder, context=512, kv=kv) for kv in ("bf16", "int8"))
    assert packed.memory[0].kv_cache < plain.memory[0].kv_cache
    with hetegen.load(folder, threads=1, context=512, kv="int8") as model:
        assert model.plan.kv == "int8"
        assert model.plan.memory[0].kv_cache == packed.memory[0].kv_cache
        assert model.generate("hi", temperature=0, max_new_tokens=4).stats.new_tokens > 0


def test_progress_is_told(folder: Path) -> None:
    steps: list[Loading] = []
    with hetegen.load(folder, threads=1, on_progress=steps.append) as model:
        assert model.explain()
        assert model.plan.format == "bf16"
    assert [step.phase for step in steps][-1] == "ready"


def test_limits_of_memory_move_weights(folder: Path) -> None:
    with hetegen.load(folder, threads=1, simulate_gpu="vram=256MiB,link=2GB/s", context=256) as model:
        before = model.generate("hi", temperature=0).text
        assert model.limit(vram=0).gpu == -1
        assert model.plan.gpu == -1
        assert model.generate("hi", temperature=0).text == before


def test_importing_it_imports_neither_torch_nor_a_window(repository: Path) -> None:
    code = "import sys, hetegen; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "PySide6", "app"} & set(ran.stdout.split())
