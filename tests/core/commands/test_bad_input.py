"""Whatever is wrong with a model folder or a request: one sentence with the next step, and the engine goes on."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from core.__main__ import main
from core.engine import Engine
from core.errors import (
    BadRequest,
    BrokenOutput,
    HeteGenError,
    ModelNotFound,
    ModelUnreadable,
    NoChatTemplate,
    NotEnoughMemory,
    PromptTooLong,
    UnsupportedModel,
)
from core.events import Failed, Finished, Loaded, LoadOptions, Message, Piece, Request, Sampling
from tests.core.tiny_tokenizer import chat_model, write_tokenizer

QUERIES = "model.layers.0.self_attn.q_proj.weight"
WEIGHTS = "model.safetensors"
NOBODY = 65534
ONE_THREAD = LoadOptions(threads=1)
HELLO = Request((Message("user", "hello"),), Sampling(max_new_tokens=8))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("sound"), bos_token_id=None, pad_token_id=None)


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """Provide a valid model folder that a test may damage."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


@pytest.fixture
def folder_for_all(sound: Path) -> Iterator[Path]:
    """Provide one outside of pytest's folder, which the next pytest that starts takes back from other users."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(shutil.copytree(sound, Path(place) / "model"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Provide one engine for all tests, as in an application that continues after each failure."""
    engine = Engine()
    *_, _loaded = engine.load(None, ONE_THREAD)
    # Each load collects garbage, which would traverse all objects of torch and transformers every time.
    gc.freeze()
    return engine


def config(**changes: Any) -> Callable[[Path], None]:
    return edit_json("config.json", **changes)


def edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8")) | changes
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return damage


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: bytes_to(folder / name, data)


def bytes_to(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def delete(*patterns: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()

    return damage


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        bytes_to(folder / name, data[: int(len(data) * keep)])

    return damage


def in_turn(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load((folder / WEIGHTS).read_bytes()).items()}
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def corrupt_header(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[8:40] = b"\xff" * 32
    bytes_to(folder / WEIGHTS, bytes(data))


def unknown_number_format(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    bytes_to(folder / WEIGHTS, len(header).to_bytes(8, "little") + header + b"\0\0")


def shards(*names: str) -> Callable[[Path], None]:
    """Make an index with these file names, of which only the first exists."""

    def damage(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "first.safetensors")
        index = {"weight_map": {f"weight{i}": name for i, name in enumerate(names)}}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")

    return damage


Damage = Callable[[Path], Any]
BROKEN: dict[str, tuple[Damage, type[HeteGenError], str]] = {
    "no folder": (shutil.rmtree, ModelNotFound, "There is no model at"),
    "a file": (
        in_turn(shutil.rmtree, lambda folder: bytes_to(folder, b"text")), ModelUnreadable, "is a file",
    ),
    "empty folder": (delete("*"), ModelUnreadable, "neither a config.json nor a GGUF"),
    "config cut off": (cut("config.json", 0.5), ModelUnreadable, "config.json cannot be read. It is damaged."),
    "config no text": (write("config.json", b"\xff\xfe\x00"), ModelUnreadable, "config.json cannot be read"),
    "config a list": (write("config.json", "[1]"), ModelUnreadable, "It holds no settings"),
    "config too deep": (write("config.json", "[" * 100_000), ModelUnreadable, "config.json cannot be read"),
    "no architecture": (config(model_type=None), UnsupportedModel, "names no architecture"),
    "unknown architecture": (config(model_type="llama99"), UnsupportedModel, "The architecture 'llama99' is not known"),
    "architecture needs code": (
        config(model_type="mycode", auto_map={"AutoModelForCausalLM": "modeling.Model"}), UnsupportedModel, "never run",
    ),
    "no language model": (write("config.json", '{"model_type": "clip"}'), UnsupportedModel, "not a causal language"),
    "a state of its own": (write("config.json", '{"model_type": "rwkv"}'), UnsupportedModel, "cannot be run here"),
    "its text anew in each pass": (write("config.json", '{"model_type": "cpmant"}'), UnsupportedModel, "be run here"),
    "wrong kind of value": (config(hidden_size="large"), ModelUnreadable, "does not describe a model"),
    "nonsense value": (config(vocab_size=-1), ModelUnreadable, "does not describe a model"),
    "quantised": (config(quantization_config={"quant_method": "hqq"}), UnsupportedModel, "way that is not known (hqq)"),
    "quantised unsaid": (
        change_tensors(lambda tensors: tensors.update({QUERIES: tensors[QUERIES].to(torch.uint8)})),
        UnsupportedModel, f"way that is not known (U8). It shows in {QUERIES}",
    ),
    "oddly quantised": (config(quantization_config="4bit"), UnsupportedModel, "way that is not known (4bit)"),
    "no weights": (delete(WEIGHTS), UnsupportedModel, "no weights in this folder"),
    "pickled weights": (
        in_turn(delete(WEIGHTS), write("pytorch_model.bin", b"\x80")), UnsupportedModel, "never opened here",
    ),
    "gguf": (in_turn(delete(WEIGHTS), write("model.gguf", b"GGUF")), ModelUnreadable, "model.gguf cannot be read"),
    "an adapter": (
        in_turn(delete(WEIGHTS), write("adapter_model.safetensors", b"")), UnsupportedModel, "no weights",
    ),
    "weights empty": (write(WEIGHTS, b""), ModelUnreadable, "cut off before its header"),
    "weights cut off": (cut(WEIGHTS, 0.7), ModelUnreadable, "It is cut off:"),
    "header corrupt": (corrupt_header, ModelUnreadable, "Its header is damaged"),
    "weights a web page": (write(WEIGHTS, "<!doctype html><html>"), ModelUnreadable, "not begin with a safetensors"),
    "number format": (unknown_number_format, UnsupportedModel, "way that is not known (fp4)"),
    "tensor missing": (
        change_tensors(lambda tensors: tensors.pop("model.norm.weight")), ModelUnreadable, "model.norm.weight",
    ),
    "tensor of wrong shape": (
        change_tensors(lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)})),
        ModelUnreadable, "The weight model.norm.weight has the wrong shape",
    ),
    "shards missing": (
        shards("first.safetensors", "second.safetensors"), ModelUnreadable, "1 of 2 weight files are missing",
    ),
    "shards elsewhere": (shards("first.safetensors", "../x.safetensors"), ModelUnreadable, "outside its folder"),
    "index damaged": (
        in_turn(shards("first.safetensors", "second.safetensors"), write(f"{WEIGHTS}.index.json", "{")),
        ModelUnreadable, "cannot be read. It is damaged",
    ),
    "no tokenizer": (delete("tokenizer*", "special*", "chat_template*"), ModelUnreadable, "The model has no tokenizer"),
    "tokenizer damaged": (cut("tokenizer.json", 0.5), ModelUnreadable, "tokenizer cannot be read"),
}  # fmt: skip
UNANSWERED: dict[str, tuple[Damage, type[HeteGenError], str]] = {
    "no chat template": (
        in_turn(delete("chat_template*", "tokenizer*"), lambda folder: write_tokenizer(folder, None)),
        NoChatTemplate, "This model has no chat template.",
    ),
    "template refuses": (
        lambda folder: write_tokenizer(folder, "{{ raise_exception('only even turns') }}"),
        NoChatTemplate, "It says: only even turns.",
    ),
    "template broken": (
        lambda folder: write_tokenizer(folder, "{% for %}"), NoChatTemplate, "chat template refuses the conversation",
    ),
    "not numbers": (
        change_tensors(lambda tensors: tensors["model.norm.weight"].fill_(torch.nan)), BrokenOutput, "are not numbers",
    ),
    "infinite": (
        change_tensors(lambda tensors: tensors["model.norm.weight"].fill_(torch.inf)), BrokenOutput, "are not numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_model_is_refused_and_the_next_one_loads(name: str, engine: Engine, folder: Path) -> None:
    damage, kind, words = BROKEN[name]
    damage(folder)
    *_, last = engine.load(folder, ONE_THREAD)
    _check_failed(last, kind, words)
    _check_works(engine)


@pytest.mark.parametrize("name", UNANSWERED)
def test_model_that_cannot_answer_says_why(name: str, engine: Engine, folder: Path) -> None:
    damage, kind, words = UNANSWERED[name]
    damage(folder)
    *_, loaded = engine.load(folder, ONE_THREAD)
    assert isinstance(loaded, Loaded)
    *_, last = engine.chat(HELLO)
    _check_failed(last, kind, words)
    _check_works(engine)


@pytest.mark.parametrize("name", [*BROKEN, *UNANSWERED])
def test_command_line_gives_one_line(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, _, words = (BROKEN | UNANSWERED)[name]
    damage(folder)
    assert _error_line(["--model", str(folder), "--prompt", "hello"], capsys).find(words) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", ""], "The message is empty."),
        (["--prompt", "  \n\t"], "The message is empty."),
        (["--prompt", "word " * 4000], "longer than the context"),
        (["--temperature", "-1"], "The temperature -1.0 is out of range. Choose a value from 0 to 5."),
        (["--temperature", "nan"], "The temperature nan is out of range"),
        (["--temperature", "inf"], "The temperature inf is out of range"),
        (["--temperature", "1e9"], "out of range"),
        (["--max-new-tokens", "0"], "The max new tokens 0 is out of range"),
        (["--max-new-tokens", "-5"], "Choose a value from 1 to 1000000."),
        (["--seed", "-1"], "The seed -1 is out of range"),
        (["--seed", str(2**70)], "out of range"),
        (["--context", "3"], "A context of 3 tokens is out of range"),
        (["--context", "-1"], "out of range"),
        (["--context", "100000"], "This model reads at most 1,024 tokens."),
        (["--threads", "0"], "0 threads cannot be used"),
        (["--ram", "1MiB"], "of memory"),
        (["--simulate-gpu", "six"], "'six' does not describe a graphics card."),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_bad_option_gives_one_line(
    options: list[str], words: str, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = [] if "--prompt" in options else ["--prompt", "hello"]
    assert words in _error_line(["--model", str(sound), *prompt, *options], capsys)


def test_a_bad_option_is_told_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert "out of range" in _error_line(["--model", "/nowhere", "--prompt", "hi", "--seed", "-1"], capsys)


@pytest.mark.parametrize(
    "options", [["--format", "int3"], ["--ram", "lots"], ["--temperature", "hot"], ["--context", "many"], ["--wings"]]
)
def test_wrong_usage_exits_with_two(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["chat", "--prompt", "hello", *options])
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(top_k=-1), "top k"),
        (Sampling(top_p=1.5), "top p"),
        (Sampling(min_p=-0.1), "min p"),
        (Sampling(repetition_penalty=0.0), "repetition penalty"),
        (Sampling(max_new_tokens=0), "max new tokens"),
        (Sampling(seed=2**64), "seed"),
    ],
)
def test_absurd_sampling_is_refused(sampling: Sampling, field: str, engine: Engine, sound: Path) -> None:
    *_, loaded = engine.load(sound, ONE_THREAD)
    assert isinstance(loaded, Loaded)
    *_, last = engine.chat(Request(HELLO.messages, sampling))
    _check_failed(last, BadRequest, f"The {field} ")
    *_, last = engine.chat(HELLO)
    assert isinstance(last, Finished)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ((), "The message is empty."),
        ((Message("user", ""),), "The message is empty."),
        ((Message("user", "hi"), Message("assistant", "hello")), "There is nothing to answer."),
        ((Message("system", "Be brief."),), "There is nothing to answer."),
    ],
)
def test_request_without_a_question_is_refused(
    messages: tuple[Message, ...], words: str, engine: Engine, sound: Path
) -> None:
    *_, _loaded = engine.load(sound, ONE_THREAD)
    *_, last = engine.chat(Request(messages))
    _check_failed(last, BadRequest, words)


def test_chat_without_a_model_is_refused() -> None:
    (only,) = Engine().chat(HELLO)
    _check_failed(only, BadRequest, "No model is loaded.")


def test_message_longer_than_the_context_is_refused(engine: Engine, sound: Path) -> None:
    *_, _loaded = engine.load(sound, LoadOptions(context=256, threads=1))
    *_, last = engine.chat(Request((Message("user", "x" * 500),)))
    _check_failed(last, PromptTooLong, "of 256 tokens")
    *_, last = engine.chat(HELLO)
    assert isinstance(last, Finished)


def test_too_little_memory_is_said_before_anything_is_read(engine: Engine, sound: Path) -> None:
    *before, last = engine.load(sound, LoadOptions(ram=10 << 20))
    _check_failed(last, NotEnoughMemory, "memory")
    assert not any(event.phase == "weights" for event in before)


def test_config_naming_code_of_its_own_is_run_by_ours(engine: Engine, folder: Path) -> None:
    """Many repositories keep `auto_map` although transformers now supports the architecture."""
    config(auto_map={"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"})(folder)
    write("modeling.py", "raise SystemExit('run')")(folder)
    *_, last = engine.load(folder, ONE_THREAD)
    assert isinstance(last, Loaded)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions work otherwise there")
@pytest.mark.parametrize(
    ("name", "words"),
    [(".", "may not be read"), ("config.json", "Permission denied"), (WEIGHTS, "Permission denied")],
)
def test_what_may_not_be_read_is_named_as_such(name: str, words: str, engine: Engine, folder_for_all: Path) -> None:
    folder = folder_for_all
    *_, _loaded = engine.load(folder, ONE_THREAD)  # all imports are done now
    (folder / name).chmod(0)
    with _as_nobody(folder):
        *_, last = engine.load(folder, ONE_THREAD)
    (folder / name).chmod(0o700)
    _check_failed(last, ModelUnreadable, words)


@pytest.mark.parametrize("name", ["weights cut off", "not numbers"])
def test_real_process_exits_with_one(name: str, folder: Path, repository: Path) -> None:
    damage, _, words = (BROKEN | UNANSWERED)[name]
    damage(folder)
    command = [sys.executable, "-m", "core", "chat", "--model", str(folder), "--prompt", "hello", "--threads", "1"]
    ran = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=250, encoding="utf-8")
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(ran.stderr.splitlines()) == 1
    assert words in ran.stderr


def _check_failed(event: object, kind: type[HeteGenError], words: str) -> None:
    assert isinstance(event, Failed)
    assert type(event.error) is kind
    assert words in str(event.error)
    assert event.error.what.endswith((".", "!"))
    assert event.error.next_step.endswith("."), "people are told what to do next"


def _check_works(engine: Engine) -> None:
    """Check that the built-in model loads and answers."""
    *_, loaded = engine.load(None, ONE_THREAD)
    assert isinstance(loaded, Loaded)
    events = list(engine.chat(HELLO))
    assert isinstance(events[-1], Finished)
    assert any(isinstance(event, Piece) for event in events)


def _error_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    threads = [] if "--threads" in arguments else ["--threads", "1"]
    assert main(["chat", *arguments, *threads]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0]
    return lines[0]


@contextmanager
def _as_nobody(folder: Path) -> Iterator[None]:
    """Become another user if root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    # Not undone: these folders belong to all processes of a test run, and another may be in the same need.
    for parent in folder.parents:
        if (found := parent.stat()).st_uid == 0 and not found.st_mode & 0o001:
            parent.chmod(found.st_mode | 0o011)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_question_that_is_no_utf8_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    """Python passes invalid bytes of an argument as lone surrogates."""
    prompt = b"What is a caf\xe9?".decode("utf-8", "surrogateescape")
    assert main(["chat", "--prompt", prompt, "--system", prompt, "--max-new-tokens", "2", "--threads", "1"]) == 0
    assert "error" not in capsys.readouterr().err


def test_a_piped_question_that_is_no_utf8_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    piped = TextIOWrapper(BytesIO(b"What is a caf\xe9?\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", piped)
    assert main(["chat", "--max-new-tokens", "2", "--threads", "1"]) == 0
