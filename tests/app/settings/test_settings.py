from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings.settings import PRESETS, Settings, accepted_types, declared, objection, read, with_value, write
from core.events import Sampling

WRONG = {
    "theme": "pink", "font_percent": 300, "language": 7, "enter_sends": 1, "system_prompt": None, "sampling_preset": "",
    "temperature": -1, "top_p": 0, "top_k": 1.5, "min_p": True, "repetition_penalty": "2", "format": "int3",
    "kv": "int4", "context": 10, "vram_limit_gib": float("nan"), "ram_limit_gib": float("inf"), "threads": 0,
    "draft": "cubes", "keep_loaded_minutes": 0, "draft_model": 3, "models_folder": 3, "hf_endpoint": "ftp://mirror",
    "download_limit_mb_s": 0, "update_check": "no", "keep_readings": 1,
}  # fmt: skip


def test_every_default_is_valid_and_every_field_declared() -> None:
    for entry in fields(Settings):
        assert objection(entry.name, entry.default) is None, entry.name
        assert declared()[entry.name].label


def test_optional_settings_say_what_none_means() -> None:
    optional = {name for name, accepted in accepted_types().items() if type(None) in accepted}
    assert optional == {name for name, entry in declared().items() if entry.unset}


def test_no_network_use_by_default() -> None:
    assert not Settings().update_check


@pytest.mark.parametrize("name", [entry.name for entry in fields(Settings)])
def test_a_wrong_value_falls_back_and_is_reported(name: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({name: WRONG[name], "future": [1, 2]}), "utf-8")
    reading = read(path)
    assert reading.settings == Settings()
    assert [problem.key for problem in reading.problems] == [name]
    assert reading.problems[0].sentence.startswith(declared()[name].label)
    assert reading.unknown == {"future": [1, 2]}


def test_round_trip_keeps_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "settings.json"
    changed = replace(Settings(), theme="dark", context=4096, temperature=0.5, system_prompt="Grüße\n🙂", threads=3)
    write(path, changed, {"future": {"a": 1}})
    reading = read(path)
    assert reading.settings == changed
    assert reading.problems == ()
    assert reading.unknown == {"future": {"a": 1}}
    assert [entry.name for entry in path.parent.iterdir()] == ["settings.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ufeff{}", '"x"', "{'a': 1}"])
def test_an_unreadable_file_is_kept_aside(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text, "utf-8")
    reading = read(path)
    assert reading.settings == Settings()
    assert len(reading.problems) == 1


def test_a_damaged_file_can_still_be_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(b"\xff\xfe{garbage")
    assert "settings.json.unreadable" in read(path).problems[0].sentence
    assert (tmp_path / "settings.json.unreadable").read_bytes() == b"\xff\xfe{garbage"


def test_a_missing_file_is_no_problem(tmp_path: Path) -> None:
    assert read(tmp_path / "none.json").problems == ()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    write(path, Settings())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write(path, Settings(), {"broken": float("nan")})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@given(st.dictionaries(st.sampled_from([entry.name for entry in fields(Settings)]), st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()),
)))  # fmt: skip
def test_whatever_is_stored_the_result_is_valid(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("any") / "settings.json"
    path.write_text(json.dumps(stored), "utf-8")
    reading = read(path)
    for name in declared():
        assert objection(name, getattr(reading.settings, name)) is None
    rejected = {problem.key for problem in reading.problems}
    assert rejected == {name for name, value in stored.items() if objection(name, value)}


def test_whole_numbers_become_floats_where_floats_are_kept() -> None:
    changed = with_value(Settings(), "temperature", 1)
    assert isinstance(changed.temperature, float)


def test_endpoints() -> None:
    assert objection("hf_endpoint", "https://hf-mirror.example/path") is None
    assert objection("hf_endpoint", "http://127.0.0.1:8000") is None
    for bad in ("file:///etc", "https://", "hub", "https://name:secret@host", "https://[::1"):
        assert objection("hf_endpoint", bad), bad


def test_sampling_is_the_preset_or_the_custom_values() -> None:
    own = replace(Settings(), temperature=0.3, top_k=7)
    assert own.sampling() == Sampling()
    assert replace(own, sampling_preset="custom").sampling() == Sampling(temperature=0.3, top_k=7)
    for value, _ in declared()["sampling_preset"].choices:
        assert value == "custom" or replace(own, sampling_preset=value).sampling() == PRESETS[value]


def test_a_draft_model_counts_only_where_it_is_chosen() -> None:
    named = replace(Settings(), draft_model="google/gemma-4-E2B-it-assistant")
    assert named.drafts == Settings().drafts == "lookup"
    assert replace(named, draft="off").drafts == "off"
    assert replace(named, draft="model").drafts == "google/gemma-4-E2B-it-assistant"
    assert replace(Settings(), draft="model").drafts == "lookup"
