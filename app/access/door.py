"""Who comes in, and as whom.

A server is run in one of three ways:

- with a file of keys: without one of them nobody does anything;
- with --admin-key alone: whoever comes may generate, the rest is for that key;
- without any key: whoever comes may generate, and who comes from this machine may do the rest.

In the last two, only addresses of this machine are served, unless --allow-anonymous says otherwise.
With a file of keys it lets those generate who come without one.
"""

import hmac
import ipaddress
from collections.abc import Iterable
from typing import Literal

import structlog

from app.access.caller import ANONYMOUS, NOBODY, Caller
from app.access.key_file import KeyFile
from app.access.keys import Key, digest_of
from app.errors import KeyConflict, KeyRequired, NotPermitted, StartError
from app.settings import Settings
from softserve.schema.keys import ADMIN, ROLES, CreateKey, Role

log = structlog.get_logger(__name__)

# What may be open to everybody by a setting, whatever else is.
Area = Literal["docs", "metrics"]

ADMINISTRATOR = Caller(ADMIN, frozenset(ROLES))
STRANGER = Caller(ANONYMOUS.name, frozenset[Role](["user"]))


class Door:
    """The keys of a server, and what it does with whoever has none."""

    def __init__(self, settings: Settings) -> None:
        """Raises `StartError` where the file of keys cannot be used."""
        admin_key = settings.admin_key
        self._admin_digest = (
            None if admin_key is None else digest_of(admin_key.get_secret_value().encode())
        )
        self._file: KeyFile | None = None
        if settings.keys_file is not None:
            self._file = KeyFile(settings.keys_file.expanduser())
            self._file.open(may_be_missing=admin_key is not None)
        self._has_keys = admin_key is not None or self._file is not None
        self._is_open_to_the_world = settings.allow_anonymous
        self._lets_strangers_in = settings.allow_anonymous or self._file is None
        self._areas: dict[Area, bool] = {
            "docs": settings.open_docs,
            "metrics": settings.open_metrics or self._file is None,
        }

    @property
    def file(self) -> KeyFile:
        """Raises `KeyConflict` where there is none."""
        if self._file is None:
            raise KeyConflict(
                "this server has no file of keys: make one with `softserve key create NAME --role "
                "admin --keys-file PATH`, and start the server with --keys-file PATH"
            )
        return self._file

    @property
    def is_for_this_machine(self) -> bool:
        """Whether strangers are let in because nobody but this machine can come."""
        return self._lets_strangers_in and not self._is_open_to_the_world

    def check_address(self, address: str) -> None:
        """Raises `StartError` for an address that is not to be served to strangers."""
        if not self._lets_strangers_in:
            if not self.file.keys.all and self._admin_digest is None:
                log.warning("there is no key yet: make one with `softserve key create`")
            return
        is_loopback = ipaddress.ip_address(address).is_loopback
        if is_loopback:
            log.info("requests need no key: only this machine is served")
        elif self._is_open_to_the_world:
            log.warning("requests need no key: whoever reaches this address may generate")
        else:
            raise StartError(
                f"{address} can be reached from other machines, and requests would need no key: "
                "make keys with `softserve key create` and start with --keys-file, or with "
                "--allow-anonymous to serve whoever comes"
            )

    def is_open(self, area: Area) -> bool:
        return self._areas[area]

    def caller(self, secret: bytes | None, *, is_local: bool) -> Caller:
        """Who comes with this secret, or with none.

        Raises:
            KeyRequired: it is not the secret of a key.
        """
        if not self._has_keys:
            return ANONYMOUS if is_local else STRANGER
        if secret is None:
            return STRANGER if self._lets_strangers_in else NOBODY
        if self._admin_digest and hmac.compare_digest(digest_of(secret), self._admin_digest):
            return ADMINISTRATOR
        caller = None if self._file is None else self._file.keys.caller_with(secret)
        if caller is None:
            raise KeyRequired(
                "this key is not known here: it is wrong, revoked or has expired; ask an admin for "
                "another"
            )
        return caller

    def knows(self, name: str) -> bool:
        """Whether somebody of this name can come."""
        in_file = () if self._file is None else self._file.keys.all
        return name in {ANONYMOUS.name, ADMIN} or any(key.name == name for key in in_file)

    def require(self, caller: Caller, roles: Iterable[Role]) -> None:
        """Raises `KeyRequired` or `NotPermitted` for a caller without any of these roles."""
        if not caller.roles.isdisjoint(roles):
            return
        if caller.name != ANONYMOUS.name:
            raise NotPermitted(
                f"the key {caller.name} does not have the role {' or '.join(roles)}: ask an admin "
                "for one that has"
            )
        if not self._has_keys:
            raise NotPermitted(
                "without a key, only direct requests from the server's own machine may do this: "
                "start the server with --admin-key or --keys-file"
            )
        raise KeyRequired("this needs a key: send it as `authorization: Bearer KEY`")

    def create_key(self, asked: CreateKey, by: Caller) -> tuple[Key, str]:
        """Raises as `KeyFile.create` does."""
        made = self.file.create(asked)
        log.info("a key is made", name=asked.name, roles=asked.roles, by=by.name)
        return made

    def revoke_key(self, name: str, by: Caller) -> None:
        """Raises as `KeyFile.revoke` does: the last who could make another key stays."""
        self.file.revoke(name, keep_an_admin=self._admin_digest is None)
        log.info("a key is revoked", name=name, by=by.name)

    async def watch(self) -> None:
        """Follow the file of keys."""
        if self._file is not None:
            await self._file.watch()
