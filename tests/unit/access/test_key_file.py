"""The file of keys: what is written, by whom, and what is done about one that is wrong."""

import json
import multiprocessing
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.access.key_file import KeyFile
from app.access.keys import Keys, new_key
from app.errors import InvalidRequest, KeyConflict, KeyNotFound, StartError
from softserve.schema.keys import SECRET_PREFIX, CreateKey
from tests.key_files import opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def create(path: Path, name: str) -> str:
    return opened(path).create(CreateKey(name=name))[1]


def test_a_secret_finds_its_caller(path: Path) -> None:
    asked = CreateKey(
        name="bot", roles=["user", "operator"], adapters=["a*"], weight=2, max_requests_in_flight=3
    )
    _, secret = opened(path).create(asked)
    caller = opened(path).keys.caller_with(secret.encode())
    assert caller is not None
    assert caller.name == "bot"
    assert caller.roles == {"user", "operator"}
    assert (caller.adapters, caller.templates) == (("a*",), None)
    assert (caller.quotas.weight, caller.quotas.max_requests_in_flight) == (2, 3)


def test_secrets_are_long_and_differ() -> None:
    secrets = {new_key(CreateKey(name="a"))[1] for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith(SECRET_PREFIX) for secret in secrets)
    # 256 bits in base64.
    assert {len(secret) - len(SECRET_PREFIX) for secret in secrets} == {43}


def test_a_secret_is_not_kept(path: Path) -> None:
    secret = create(path, "a")
    assert secret not in path.read_text()
    digest = json.loads(path.read_text())["keys"][0]["digest"]
    # Whoever has the file has no key.
    assert opened(path).keys.caller_with(digest.encode()) is None


@pytest.mark.parametrize("change", [str.upper, lambda secret: secret[:-1], lambda secret: ""])
def test_another_secret_finds_nobody(path: Path, change: Callable[[str], str]) -> None:
    secret = create(path, "a")
    assert opened(path).keys.caller_with(change(secret).encode()) is None


def test_a_key_ends_by_itself() -> None:
    now = datetime.now(UTC)
    for expires_at, is_valid in ((now - timedelta(seconds=1), False), (now + timedelta(1), True)):
        key, secret = new_key(CreateKey(name="a"))
        keys = Keys([key.model_copy(update={"expires_at": expires_at})])
        assert (keys.caller_with(secret.encode()) is not None) == is_valid


def test_an_admin_has_no_patterns() -> None:
    with pytest.raises(InvalidRequest):
        new_key(CreateKey(name="a", roles=["admin"], templates=["x"]))


def test_only_its_owner_can_read_it(path: Path) -> None:
    create(path, "a")
    path.chmod(0o644)
    create(path, "b")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_stays_one(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "real.json"
    target.parent.mkdir()
    create(target, "a")
    path.symlink_to(target)
    create(path, "b")
    assert path.is_symlink()
    assert [key.name for key in opened(target).keys.all] == ["a", "b"]


def test_nothing_else_is_left_behind(path: Path) -> None:
    # By a writer that was killed.
    path.with_name(".keys.json.new").write_text("half")
    create(path, "a")
    opened(path).revoke("a", keep_an_admin=False)
    assert {each.name for each in path.parent.iterdir()} <= {"keys.json", "keys.json.lock"}
    assert opened(path).keys.all == ()


def test_a_disk_that_is_full_leaves_what_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    create(path, "a")
    before = path.read_bytes()
    with monkeypatch.context() as while_full:
        while_full.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            create(path, "b")
    assert path.read_bytes() == before
    assert {each.name for each in path.parent.iterdir()} <= {"keys.json", "keys.json.lock"}


def test_a_name_is_taken_once(path: Path) -> None:
    create(path, "a")
    with pytest.raises(KeyConflict, match="there is a key a already"):
        create(path, "a")
    with pytest.raises(KeyNotFound):
        opened(path).revoke("b", keep_an_admin=False)


def test_an_admin_that_has_expired_is_none(path: Path) -> None:
    file = opened(path)
    for name in ("old", "last"):
        file.create(CreateKey(name=name, roles=["admin"]))
    content = json.loads(path.read_text())
    for key in content["keys"]:
        if key["name"] == "old":
            key["expires_at"] = "2020-01-01T00:00:00Z"
    path.write_text(json.dumps(content))
    with pytest.raises(KeyConflict, match="the last key with the role admin"):
        opened(path).revoke("last", keep_an_admin=True)
    opened(path).revoke("old", keep_an_admin=True)


def _create_some(path: Path, name: str) -> None:
    for number in range(5):
        create(path, f"{name}-{number}")


def test_processes_that_change_it_at_once(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_create_some, args=(path, f"p{i}")) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(opened(path).keys.all) == 20


KEY = {"name": "a", "digest": "0" * 64, "created_at": "2026-11-26T00:00:00Z"}


def file_of(*keys: dict[str, str]) -> str:
    return json.dumps({"keys": keys})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "it is not JSON"),
        ('{"keys": [{"name"', "it is not JSON"),
        ("[]", "object"),
        ('{"users": []}', "users: Extra inputs"),
        ('{"keys": [{"name": "a"}]}', "keys.0.created_at"),
        (file_of(KEY | {"digest": "swordfish"}), "keys.0.digest"),
        (file_of(KEY | {"name": "admin"}), "keys.0.name"),
        (file_of(KEY | {"x": "swordfish"}), "keys.0.x"),
        (file_of(KEY, KEY), "two keys have the same name"),
        (file_of(KEY, KEY | {"name": "b"}), "two keys have the same digest"),
    ],
)
def test_what_is_no_file_of_keys(path: Path, content: str, why: str) -> None:
    path.write_text(content)
    with pytest.raises(StartError, match="is not a file of keys, or damaged") as raised:
        opened(path)
    assert why in raised.value.message
    assert "swordfish" not in raised.value.message
    with pytest.raises(KeyConflict, match="is not a file of keys, or damaged"):
        KeyFile(path).create(CreateKey(name="a"))
    assert path.read_text() == content


def test_no_file(path: Path) -> None:
    with pytest.raises(StartError, match="softserve key create NAME"):
        KeyFile(path).open(may_be_missing=False)
    path.mkdir()
    with pytest.raises(StartError, match="is not a file"):
        opened(path)
