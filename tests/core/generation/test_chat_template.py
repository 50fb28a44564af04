from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import NoChatTemplate
from core.events import Message, Tool, ToolCall
from core.generation.chat_template import BREAK, ChatTemplate
from core.generation.context_window import fit
from core.generation.template_files import chosen
from core.generation.tokenizer import Tokenizer
from tests.core.generation import family_templates as family
from tests.core.tiny_tokenizer import TEMPLATE, write_tokenizer

TEMPLATES = {name: ChatTemplate(source, {}) for name, source in family.FAMILIES.items()}


def user(text: str) -> Message:
    return Message("user", text)


def model(text: str, thought: str = "") -> Message:
    return Message("assistant", text, thought)


# Texts of users and models, including ones that break templates.
SAID = st.sampled_from(
    ["hi", "so?", " spaced \n", "{{ x }}", "a <b> c", "</think> is a tag", "<tool_response>x</tool_response>",
     "<|channel|>final<|message|>x", "[INST]", "\ud83d", "日本 😀", "'text': 'x'"]
)  # fmt: skip
TURN = st.one_of(
    st.builds(user, SAID),
    st.builds(model, SAID | st.just(""), st.sampled_from(["", "hm", "<think>"])),
    st.builds(lambda text: Message("system", text), SAID),
)


@pytest.mark.parametrize("name", TEMPLATES)
@given(turns=st.lists(TURN, max_size=9), question=SAID)
@settings(max_examples=60)
def test_no_conversation_is_refused_and_its_question_is_in_the_prompt(
    name: str, turns: list[Message], question: str
) -> None:
    """Edits, stops, continued and empty replies lead to any order of turns."""
    text = TEMPLATES[name].render([*turns, user(question)]).replace(BREAK, "")
    assert question.strip().replace("\ud83d", "\ufffd") in text


@pytest.mark.parametrize("name", TEMPLATES)
@given(turns=st.lists(TURN, max_size=9), question=SAID)
@settings(max_examples=30)
def test_nothing_that_was_said_is_lost(name: str, turns: list[Message], question: str) -> None:
    text = TEMPLATES[name].render([user("first"), *turns, user(question)]).replace(BREAK, "")
    assert all(turn.content.strip().replace("\ud83d", "\ufffd") in text for turn in turns)


@pytest.mark.parametrize("name", TEMPLATES)
@given(
    turns=st.lists(st.builds(user, SAID) | st.builds(model, SAID | st.just("")), max_size=30),
    context=st.integers(60, 300),
)
@settings(max_examples=30)
def test_an_overflowing_conversation_is_never_refused(name: str, turns: list[Message], context: int) -> None:
    def render(messages: object) -> list[int]:
        return list(TEMPLATES[name].render(messages).encode()[::4])  # type: ignore[arg-type]

    system = Message("system", "Be brief.")
    ids, truncated = fit([system, user("first"), *turns, user("the last one?")], render, context * 4)
    assert bytes(ids)
    assert truncated is None or truncated.dropped_messages > 0


@pytest.mark.parametrize("name", ["mistral", "gemma"])
def test_what_is_left_of_a_full_context_begins_with_a_question(name: str) -> None:
    talk = [turn for n in range(30) for turn in (user(f"question {n} "), user("and?"), model(f"answer {n}"))]
    seen: list[str] = []

    def render(messages: object) -> list[int]:
        seen.append(TEMPLATES[name].render(messages))  # type: ignore[arg-type]
        return list(seen[-1].encode())

    _, truncated = fit([Message("system", "Be brief."), *talk, user("last?")], render, 700)
    assert truncated is not None
    assert talk[truncated.dropped_messages].content.startswith("question")
    assert "Be brief." in seen[-1]
    assert "last?" in seen[-1]


def test_questions_in_a_row_are_joined_where_turns_must_alternate() -> None:
    said = [user("one"), user("two"), model("a"), model("b"), user("three")]
    assert "one\n\ntwo<end_of_turn>" in TEMPLATES["gemma"].render(said)
    assert "a\n\nb<end_of_turn>" in TEMPLATES["gemma"].render(said)
    assert "one<|eot_id|>" in TEMPLATES["llama3"].render(said), "they stay apart where that is taken"


@pytest.mark.parametrize("name", ["gemma", "deaf"])
def test_a_system_prompt_that_is_not_taken_goes_into_the_first_question(name: str) -> None:
    text = TEMPLATES[name].render([Message("system", "Be brief."), user("hi"), model("a"), user("so?")])
    assert "Be brief.\n\nhi" in text


@pytest.mark.parametrize("name", ["parts", "mixed"])
def test_a_template_that_reads_parts_is_given_parts(name: str) -> None:
    text = TEMPLATES[name].render([Message("system", "S!"), user("Q!"), model("A!"), user("R!")])
    want = "".join(f"<|im_start|>{role}\n{said}!<|im_end|>\n" for role, said in
                   (("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R")))  # fmt: skip
    assert text == f"{want}<|im_start|>assistant\n"


def test_a_template_that_leaves_the_question_out_says_so() -> None:
    with pytest.raises(NoChatTemplate, match="leaves the question out"):
        ChatTemplate("{{ 'hello ' + messages | length | string }}", {}).render([user("hi")])


def test_words_that_a_template_reads_itself_still_reach_it() -> None:
    """A word in the system prompt switches thinking off and is removed, as in SmolLM3 and Nemotron."""
    source = (
        "{% set quiet = '/no_think' in messages[0].content %}{{ messages[0].content.replace('/no_think', '') }}"
        "{% for m in messages[1:] %}[{{ m.content }}]{% endfor %}{{ 'quiet' if quiet else 'loud' }}"
    )
    assert ChatTemplate(source, {}).render([Message("system", "S /no_think"), user("Q")]) == "S [Q]quiet"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("qwen3.5", "<think>\n", "\n</think>\n\n"),
        ("gpt-oss", "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("command-a", "<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ],
)
def test_what_stands_around_a_thought_is_found_in_the_template(name: str, before: str, after: str) -> None:
    assert TEMPLATES[name].around.thought == (before, after)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def with_tokens(folder: Path, target: Path, template: str, *tokens: str, special: bool = True) -> Tokenizer:
    """Return the tiny tokenizer with another template and these added tokens."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    shutil.copytree(folder, target, dirs_exist_ok=True)
    backend: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(target)
    backend.add_tokens(list(tokens), special_tokens=special)
    backend.chat_template = template
    backend.save_pretrained(target)
    return Tokenizer.load(target)


@pytest.mark.parametrize("end", ["<|eot|>", "<|end_of_turn|>", "[EOT]", "</turn>", "<|endofassistant|>"])
@pytest.mark.parametrize("special", [True, False])
def test_the_token_that_closes_an_answer_ends_replies(folder: Path, tmp_path: Path, end: str, special: bool) -> None:
    template = TEMPLATE.replace("<|im_end|>\\n", f" {end}\\n").replace("<|im_end|>\n", f"{end}\n")
    tokenizer = with_tokens(folder, tmp_path, template, end, special=special)
    assert tokenizer.backend.convert_tokens_to_ids(end) in tokenizer.stop_ids


def test_a_next_turns_opening_ends_replies_where_nothing_closes_them(folder: Path, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = with_tokens(folder, tmp_path, template, "<|user|>", "<|assistant|>")
    assert tokenizer.backend.convert_tokens_to_ids("<|user|>") in tokenizer.stop_ids


def test_what_also_stands_inside_replies_ends_none(folder: Path, tmp_path: Path) -> None:
    names = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>")
    tokenizer = with_tokens(folder, tmp_path, family.GPT_OSS, *names)
    ids = {name: tokenizer.backend.convert_tokens_to_ids(name) for name in names}
    assert ids["<|end|>"] not in tokenizer.stop_ids
    assert ids["<|return|>"] in tokenizer.stop_ids


def test_marks_around_the_answer_are_not_its_end(folder: Path, tmp_path: Path) -> None:
    names = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|END_OF_TURN|>", "<|START_THINKING|>", "<|END_THINKING|>")
    tokenizer = with_tokens(folder, tmp_path, family.COMMAND_A, *names)
    assert tokenizer.backend.convert_tokens_to_ids("<|END_OF_TURN|>") in tokenizer.stop_ids
    assert tokenizer.backend.convert_tokens_to_ids("<|END_RESPONSE|>") not in tokenizer.stop_ids


BOM = "\ufeff"
NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "chatty", "template": TEMPLATE}]
ELSEWHERE = {
    "jinja": ("chat_template.jinja", TEMPLATE),
    "jinja with a byte-order mark": ("chat_template.jinja", BOM + TEMPLATE),
    "processor's file": ("chat_template.json", json.dumps({"chat_template": TEMPLATE})),
    "processor's file with a mark": ("chat_template.json", BOM + json.dumps({"chat_template": TEMPLATE})),
    "several in the processor's file": ("chat_template.json", json.dumps({"chat_template": NAMED})),
    "processor's configuration": ("processor_config.json", json.dumps({"chat_template": TEMPLATE})),
    "folder of templates": ("additional_chat_templates/chat.jinja", TEMPLATE),
    "folder with a mark": ("additional_chat_templates/rag.jinja", BOM + TEMPLATE),
}


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_template_is_found_wherever_it_lies(place: str, folder: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, None)
    name, content = ELSEWHERE[place]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content, encoding="utf-8")
    tokenizer, usual = Tokenizer.load(tmp_path), Tokenizer.load(folder)
    assert tokenizer.can_chat
    assert tokenizer.render([user("the dog")]) == usual.render([user("the dog")])


def test_of_several_named_templates_the_one_for_chats_is_used(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, None)
    settings_file = tmp_path / "tokenizer_config.json"
    settings_file.write_text(
        json.dumps({**json.loads(settings_file.read_text("utf-8")), "chat_template": NAMED}), "utf-8"
    )
    assert Tokenizer.load(tmp_path).render([user("the dog")]) == Tokenizer.load(folder).render([user("the dog")])


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ({"default": "d", "chat": "c"}, "d"), ({"rag": "r", "tool_use": "t", "x": "x"}, "x"), ({"tool_use": "t"}, "t"),
        ({}, ""), ([], ""), (None, ""), (3, ""), ([{"name": "a"}], ""), ([3], ""), ({"default": None, "b": "b"}, "b"),
    ],
)  # fmt: skip
def test_the_template_for_chats(value: object, want: str) -> None:
    assert chosen(value) == want


@pytest.mark.parametrize("halves", [[0xD83D], [0xDCFF], [0x61, 0xD800, 0x62], [0xDE00, 0xD83D]])
def test_half_a_surrogate_pair_is_replaced(folder: Path, halves: list[int]) -> None:
    half = "".join(map(chr, halves))
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.render([Message("system", half), user(half), model(half, half), user(half)])
    assert ids == tokenizer.render(
        [Message("system", (whole := half.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))), user(whole),
         model(whole, whole), user(whole)]
    )  # fmt: skip
    assert "\ufffd" in tokenizer.decode(ids)


def test_marks_are_broken_wherever_they_stand_and_nothing_else_is() -> None:
    tokens = [*(f"<unused{number}>" for number in range(6000)), "<eos>", "[INST]", "<|a|>", "<|a", "ab"]
    template = ChatTemplate("{{ '<think>' }}{{ messages[0].content }}", {}, tokens)
    text = "<unused12> <unused> <<eos>[INST][INS] <|a|> <think> <b> cab vector<int>"
    assert template.guard(text).replace(BREAK, "|!") == (
        "<|!unused12> <unused> <<|!eos>[|!INST][INS] <|!|a|> <|!think> <b> ca|!b vector<int>"
    )
    assert template.guard(f"<{BREAK}eos>") == f"<{BREAK}eos>"


APPENDS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %} call {{ c.function.name + c.function.arguments + '!' }}{% endfor %}"
    "\n{% endfor %}"
)
CALLED = [
    user("the dog"),
    Message("assistant", "", tool_calls=(ToolCall("a", "look", '{"at": "the house"}'),)),
    Message("tool", "the cat", tool_call_id="a"),
]


def test_a_template_for_tools_is_used_for_them_alone(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, None)
    settings_file = tmp_path / "tokenizer_config.json"
    named = {"default": TEMPLATE, "tool_use": "with {{ tools[0].function.name }}: " + APPENDS}
    settings_file.write_text(
        json.dumps({**json.loads(settings_file.read_text("utf-8")), "chat_template": named}), "utf-8"
    )
    tokenizer, usual = Tokenizer.load(tmp_path), Tokenizer.load(folder)
    assert tokenizer.render([user("the dog")]) == usual.render([user("the dog")])
    assert tokenizer.decode(tokenizer.render([user("the dog")], tools=[Tool("look")])).startswith("with look")
    assert "tools[0]" in tokenizer.tool_template
    assert usual.tool_template == usual.template


@pytest.mark.parametrize(
    "write",
    [
        "c.function.name + c.function.arguments + '!'",
        "c.function.name ~ c.function.arguments ~ '!'",
        "c.function.name ~ (c.function.arguments | tojson) ~ '!'",
    ],
)
def test_a_calls_arguments_are_written_as_json_by_every_template(write: str) -> None:
    source = APPENDS.replace("c.function.name + c.function.arguments + '!'", write)
    assert 'call look{"at": "the house"}!' in ChatTemplate(source, {}).render(CALLED)
