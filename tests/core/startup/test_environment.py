"""The environment variables with which torch and transformers are imported."""

from __future__ import annotations

import pytest

from core.startup.environment import prepare_environment


@pytest.mark.parametrize(("variable", "value"), [("GOMP_SPINCOUNT", "2000"), ("KMP_BLOCKTIME", "0")])
def test_no_openmp_has_idle_threads_that_take_our_kernels_cores(variable: str, value: str) -> None:
    environ: dict[str, str] = {}
    prepare_environment(environ)
    assert environ[variable] == value
    environ[variable] = "a person's own"
    prepare_environment(environ)
    assert environ[variable] == "a person's own"
