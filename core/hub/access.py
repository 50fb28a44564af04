"""Access to the Hub for one program: a single client with the current token, created on first use."""

from __future__ import annotations

import threading

from core.hub.client import Client
from core.hub.environment import HubEnvironment
from core.hub.token import NO_TOKEN, AuthToken, TokenSource, find_token, forget_token, keep_token
from core.keyring import Keyring


class Access:
    """Provides the client. Thread-safe; finding the token may take a while the first time."""

    def __init__(self, environment: HubEnvironment, keyring: Keyring) -> None:
        self.environment = environment
        self._keyring = keyring
        self._token: AuthToken | None = None
        self._client: Client | None = None
        self._lock = threading.Lock()

    def client(self) -> Client:
        """Return the client for the endpoint, with its token."""
        with self._lock:
            if self._client is None:
                self._client = Client(self.environment.endpoint, self._find().value, offline=self.environment.offline)
            return self._client

    def use_token(self, value: str) -> None:
        """Use this token from now on and store it in the keyring. Raises HeteGenError if it could not be stored."""
        with self._lock:
            self._token = AuthToken(value.strip(), "keyring")
            self._drop()
        keep_token(self.environment, value, self._keyring)

    def token_source(self) -> TokenSource:
        """Return where the current token comes from."""
        with self._lock:
            return self._find().source

    def forget_token(self) -> None:
        """Remove the stored token from the keyring; one in the environment or in Hugging Face's file stays."""
        forget_token(self.environment, self._keyring)
        with self._lock:
            self._token = None
            self._drop()

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            self._drop()

    def _find(self) -> AuthToken:
        if self.environment.offline:
            return NO_TOKEN
        if self._token is None:
            self._token = find_token(self.environment, self._keyring)
        return self._token

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
