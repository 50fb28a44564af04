"""The sources of tokens, the hosts they are sent to, and the environment variables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from keyring.errors import NoKeyringError

from core.errors import HeteGenError
from core.hub.environment import HubEnvironment, hub_environment
from core.hub.token import NO_TOKEN, AuthToken, find_token, forget_token, keep_token
from tests.core.keyring_in_memory import Ring


class NoRing:
    """A system without a keyring."""

    def get_password(self, service: str, name: str) -> str | None:
        raise NoKeyringError

    def set_password(self, service: str, name: str, password: str) -> None:
        raise NoKeyringError

    def delete_password(self, service: str, name: str) -> None:
        raise NoKeyringError


@pytest.fixture
def environment(tmp_path: Path) -> HubEnvironment:
    (tmp_path / "token").write_text("hf_file\n")
    return hub_environment({"HF_HOME": str(tmp_path), "HF_TOKEN": " hf_env "})


def test_order(environment: HubEnvironment) -> None:
    ring = Ring()
    keep_token(environment, " hf_ring ", ring)
    assert find_token(environment, ring) == AuthToken("hf_env", "environment")
    environment = replace(environment, token="")
    assert find_token(environment, ring) == AuthToken("hf_ring", "keyring")
    forget_token(environment, ring)
    forget_token(environment, ring)
    assert find_token(environment, ring) == AuthToken("hf_file", "file")
    assert find_token(replace(environment, implicit_token=False), ring) == NO_TOKEN
    environment.token_file.unlink()
    assert find_token(environment, NoRing()) == NO_TOKEN


@pytest.mark.parametrize(
    ("endpoint", "meant"),
    [
        ("https://huggingface.co", True),
        ("https://hub-ci.huggingface.co", True),
        ("http://huggingface.co", False),
        ("https://huggingface.co.evil.test", False),
        ("https://evilhuggingface.co", False),
        ("https://mirror.test", False),
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000", True),
    ],
)
def test_tokens_of_hugging_face_do_not_go_to_mirrors(environment: HubEnvironment, endpoint: str, meant: bool) -> None:
    environment = replace(environment, endpoint=endpoint)
    assert (find_token(environment, Ring()) != NO_TOKEN) is meant


def test_mirror_that_is_named_or_has_its_own(environment: HubEnvironment) -> None:
    ring = Ring()
    mirror = replace(environment, endpoint="https://mirror.test:8443")
    assert find_token(replace(mirror, token_host="mirror.test:8443"), ring).value == "hf_env"
    assert find_token(replace(mirror, token_host="mirror.test"), ring) == NO_TOKEN
    keep_token(mirror, "own", ring)
    assert find_token(mirror, ring) == AuthToken("own", "keyring")
    assert find_token(replace(mirror, endpoint="https://other.test"), ring) == NO_TOKEN


def test_no_keyring_is_said(environment: HubEnvironment) -> None:
    with pytest.raises(HeteGenError, match="no keyring that works"):
        keep_token(environment, "hf", NoRing())
    forget_token(environment, NoRing())


def test_tokens_do_not_show_themselves() -> None:
    assert "hf_secret" not in f"{AuthToken('hf_secret', 'file')!r} {AuthToken('hf_secret', 'file')}"


def test_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    plain = hub_environment({})
    assert plain.endpoint == "https://huggingface.co"
    assert plain.cache == tmp_path / ".cache" / "huggingface" / "hub"
    assert plain.token_file == tmp_path / ".cache" / "huggingface" / "token"
    assert not plain.offline
    assert plain.symlinks
    assert hub_environment({"XDG_CACHE_HOME": "/x"}).cache == Path("/x/huggingface/hub")
    assert hub_environment({"HF_HOME": "/h"}).cache == Path("/h/hub")
    assert hub_environment({"HF_HOME": "/h", "HF_HUB_CACHE": "/c"}).cache == Path("/c")
    assert hub_environment({"HF_ENDPOINT": "https://m.test/"}).endpoint == "https://m.test"
    assert hub_environment({"HF_TOKEN_PATH": "/t"}).token_file == Path("/t")
    assert hub_environment({"HF_HUB_OFFLINE": "1"}).offline
    assert hub_environment({"TRANSFORMERS_OFFLINE": "yes"}).offline
    assert not hub_environment({"HF_HUB_DISABLE_SYMLINKS": "true"}).symlinks
