"""A keyring in memory, in place of the system's."""

from __future__ import annotations

from keyring.errors import PasswordDeleteError


class Ring:
    """Keeps secrets during its lifetime."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, name: str) -> str | None:
        return self.kept.get((service, name))

    def set_password(self, service: str, name: str, password: str) -> None:
        self.kept[service, name] = password

    def delete_password(self, service: str, name: str) -> None:
        if self.kept.pop((service, name), None) is None:
            raise PasswordDeleteError
