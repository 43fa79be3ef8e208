"""Keys, and which one a secret belongs to.

Of a secret its SHA-256 is kept. A slow hash would protect what can be guessed; 256 random bits
cannot, and every request would wait for it.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import ConfigDict, Field

from app.access.caller import Caller, Quotas
from app.errors import InvalidRequest
from softserve.schema.keys import SECRET_PREFIX, CreateKey, KeyOut

SECRET_BYTES = 32


class Key(KeyOut):
    """A key as it is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @property
    def caller(self) -> Caller:
        """Who comes with it."""
        return Caller(
            self.name,
            frozenset(self.roles),
            adapters=None if self.adapters is None else tuple(self.adapters),
            templates=None if self.templates is None else tuple(self.templates),
            quotas=Quotas(
                self.max_requests_in_flight,
                self.prompt_tokens_per_minute,
                self.completion_tokens_per_minute,
                self.weight,
                self.max_priority,
            ),
        )

    @property
    def out(self) -> KeyOut:
        """What may be told of it."""
        return KeyOut(**self.model_dump(include=set(KeyOut.model_fields)))

    def is_valid(self) -> bool:
        return self.expires_at is None or datetime.now(UTC) < self.expires_at


def new_key(asked: CreateKey) -> tuple[Key, str]:
    """A key, and its secret.

    Raises:
        InvalidRequest: it would be limited by what its role lets it undo.
    """
    if "admin" in asked.roles and (asked.adapters is not None or asked.templates is not None):
        raise InvalidRequest(
            "an admin can make itself a key for every adapter and template: leave the patterns "
            "out, or the role admin",
            param="roles",
        )
    secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    now = datetime.now(UTC)
    days = asked.expires_in_days
    key = Key(
        **asked.model_dump(exclude={"expires_in_days"}),
        digest=digest_of(secret.encode()),
        created_at=now,
        expires_at=None if days is None else now + timedelta(days=days),
    )
    return key, secret


def digest_of(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


class Keys:
    """Keys, each found by its secret."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.all = tuple(keys)
        self._by_digest = {key.digest: (key, key.caller) for key in self.all}

    def caller_with(self, secret: bytes) -> Caller | None:
        """Whom a secret belongs to; None where it is not, or no longer, that of a key."""
        digest = digest_of(secret)
        found = self._by_digest.get(digest)
        # The table is asked for a hash, of which time tells nothing about a secret.
        if found is None or not hmac.compare_digest(found[0].digest, digest):
            return None
        key, caller = found
        return caller if key.is_valid() else None
