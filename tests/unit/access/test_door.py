"""Which addresses are served without keys, and what is said of it."""

from pathlib import Path
from typing import Any

import pytest
import structlog

from app.access.door import Door
from app.errors import StartError
from app.settings import Settings
from tests.key_files import new_key


def said(address: str, **settings: Any) -> list[tuple[str, str]]:
    """The log lines of a start."""
    with structlog.testing.capture_logs() as events:
        Door(Settings(**settings)).check_address(address)
    return [(event["log_level"], event["event"]) for event in events]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1"])
@pytest.mark.parametrize("admin_key", [None, "secret"])
def test_without_keys_this_machine_is_served(address: str, admin_key: str | None) -> None:
    ((level, event),) = said(address, admin_key=admin_key)
    assert (level, "only this machine" in event) == ("info", True)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1"])  # noqa: S104
@pytest.mark.parametrize("admin_key", [None, "secret"])
def test_without_keys_no_other_address_is(
    address: str, admin_key: str | None, tmp_path: Path
) -> None:
    with pytest.raises(StartError, match="--allow-anonymous"):
        said(address, admin_key=admin_key)
    ((level, event),) = said(address, admin_key=admin_key, allow_anonymous=True)
    assert (level, "whoever reaches this address" in event) == ("warning", True)
    path = tmp_path / "keys.json"
    new_key(path, "root", "admin")
    assert said(address, admin_key=admin_key, keys_file=path) == []


def test_a_file_without_keys_is_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"keys": []}')
    ((level, event),) = said("127.0.0.1", keys_file=path)
    assert (level, "there is no key yet" in event) == ("warning", True)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(StartError, match="there is no file of keys"):
        Door(Settings(keys_file=path))
    # Whoever has the admin key makes it with the first key.
    Door(Settings(keys_file=path, admin_key="secret"))
