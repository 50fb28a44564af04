"""Replies whose plans depend on no clock."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _steady(steady: None) -> None: ...
