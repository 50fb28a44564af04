"""Where this program keeps its own files on this computer. Knows nothing of what is in them.

Models are not here: they lie in the Hugging Face cache, which is shared with other programs.
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
    """The four folders. They need not exist yet: `make()` creates them."""

    data: Path
    config: Path
    cache: Path
    logs: Path

    @property
    def conversations(self) -> Path:
        """The database of the conversations."""
        return self.data / "conversations.db"

    @property
    def settings(self) -> Path:
        """The file of the settings."""
        return self.config / "settings.json"

    @property
    def log(self) -> Path:
        """The log that is written now."""
        return self.logs / "hetegen.log"

    def make(self) -> Places:
        """Create the folders that are missing. Raises OSError where the disk forbids it."""
        for folder in (self.data, self.config, self.cache, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        return self


def places(environ: Mapping[str, str] = os.environ) -> Places:
    """The operating system's own folders, or all four under HETEGEN_HOME where that is set."""
    if root := own_home(environ):
        return Places(root / "data", root / "config", root / "cache", root / "logs")
    # roaming stays off: a chat history does not belong into a Windows profile that travels over the network.
    dirs = PlatformDirs(NAME, appauthor=False, roaming=False)
    return Places(dirs.user_data_path, dirs.user_config_path, dirs.user_cache_path, dirs.user_log_path)
