"""Wrongly set environment variables: each is understood, or answered with one sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import AccessDenied, BadRequest, NetworkError
from core.hub.client import Client
from core.hub.environment import hub_environment
from core.hub.proxy import chosen_proxy, connect
from core.hub.token import find_token, parts_of

BAD = [
    "ftp://example.org",
    "https://example.org:port",
    "https://[::1",
    "https://",
    "https://example.org:99999",
    "a b",
    "\n",
]


class NoKeyring:
    def get_password(self, service: str, name: str) -> str | None:
        return None

    def set_password(self, service: str, name: str, password: str) -> None: ...

    def delete_password(self, service: str, name: str) -> None: ...


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("hf-mirror.com", "https://hf-mirror.com"), ("localhost:8080/", "https://localhost:8080"),
        ("http://localhost:8080", "http://localhost:8080"), ("", "https://huggingface.co"),
    ],
)  # fmt: skip
def test_an_address_without_a_scheme_is_a_web_address(said: str, meant: str) -> None:
    found = hub_environment({"HF_ENDPOINT": said}).endpoint
    assert found == meant
    assert Client(found).host


@pytest.mark.parametrize("endpoint", BAD[:-1])
def test_what_is_no_address_is_said_when_it_is_used(endpoint: str) -> None:
    """Not earlier: the guide needs no Hub."""
    environment = hub_environment({"HF_ENDPOINT": endpoint})
    find_token(environment, NoKeyring())
    with pytest.raises(BadRequest, match=re.escape("which is no web address")):
        Client(environment.endpoint)


@pytest.mark.parametrize("endpoint", BAD[:3])
def test_the_command_line_says_it_in_one_line(endpoint: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "core", "search", "llama"], env=os.environ | {"HF_ENDPOINT": endpoint},
        capture_output=True, encoding="utf-8", timeout=200,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: HF_ENDPOINT is")
    assert "Traceback" not in done.stderr


def test_variables_in_a_path_are_filled_in() -> None:
    variables = {"HOME": "/srv/ada", "HF_HOME": "$HOME/models", "HF_HUB_CACHE": "${HOME}/hub", "HF_TOKEN_PATH": "$X/t"}
    found = hub_environment(variables)
    assert (found.cache, found.token_file) == (Path("/srv/ada/hub"), Path("$X/t"))
    assert hub_environment({"HOME": "/srv/ada", "HF_HOME": "$HOME/models"}).cache == Path("/srv/ada/models/hub")


@pytest.mark.parametrize("token", ["hf_a\nhf_b", "hf_\x00", "hf ü", "hf_ü"])
def test_a_token_that_no_request_can_carry_is_named(token: str) -> None:
    with pytest.raises(AccessDenied, match="cannot be used"):
        Client("https://huggingface.co", find_token(hub_environment({"HF_TOKEN": token}), NoKeyring()).value)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "socks5h://h", "http://h:port", "http://[::1", "://"])
def test_a_proxy_that_cannot_be_used_is_said(proxy: str) -> None:
    chosen = chosen_proxy("https", {"all": proxy})
    assert chosen == proxy, "one for all addresses is not passed over in silence"
    with pytest.raises(NetworkError, match="cannot be used"):
        connect(parts_of("https://huggingface.co"), chosen, 1.0, None)
