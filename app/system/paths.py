"""The folders of this program's own files. Knows nothing of their contents.

Models are elsewhere, in the Hugging Face cache, which is shared with other programs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from platformdirs import PlatformDirs

from app import NAME
from core.paths import own_home


@dataclass(frozen=True)
class Places:
    """The four folders. They need not exist yet; `make()` creates them."""

    data: Path
    config: Path
    cache: Path
    logs: Path

    @property
    def conversations(self) -> Path:
        """The conversation database."""
        return self.data / "conversations.db"

    @property
    def settings(self) -> Path:
        """The settings file."""
        return self.config / "settings.json"

    @property
    def log(self) -> Path:
        """The current log file."""
        return self.logs / "hetegen.log"

    def make(self) -> Places:
        """Create missing folders. Raises OSError if the disk does not allow it."""
        for folder in (self.data, self.config, self.cache, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        return self


def places(environ: Mapping[str, str] = os.environ) -> Places:
    """Return the operating system's folders for this program, or folders under HETEGEN_HOME if it is set."""
    if root := own_home(environ):
        return Places(root / "data", root / "config", root / "cache", root / "logs")
    # Not roaming: a chat history must not go into a Windows profile that travels over the network.
    dirs = PlatformDirs(NAME, appauthor=False, roaming=False)
    return Places(dirs.user_data_path, dirs.user_config_path, dirs.user_cache_path, dirs.user_log_path)
