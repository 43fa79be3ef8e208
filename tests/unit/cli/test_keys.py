"""`softserve key`, on a file and on a running server."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from app.cli.keys import cli
from softserve.schema.keys import SECRET_PREFIX
from tests.key_files import opened
from tests.unit.cli.serving import TIMEOUT_SECONDS, served


def run(path: Path | None, *arguments: str, **options: str) -> Result:
    environment = {"SOFTSERVE_KEYS_FILE": None if path is None else str(path), "COLUMNS": "200"}
    return CliRunner().invoke(cli, [*arguments], env=environment | options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_create_list_and_revoke(path: Path) -> None:
    options = ["--role", "user", "--role", "operator", "--adapter", "a*", "--template", "b"]
    limits = ["--max-requests-in-flight", "4", "--weight", "0.5", "--expires-in-days", "1"]
    created = run(path, "create", "bot", *options, *limits)
    assert created.exit_code == 0
    # The secret alone is what a script reads.
    secret = created.stdout.strip()
    caller = opened(path).keys.caller_with(secret.encode())
    assert caller is not None
    assert caller.name == "bot"
    assert caller.roles == {"user", "operator"}
    assert (caller.adapters, caller.templates) == (("a*",), ("b",))
    assert "Keep its secret" in created.stderr

    listed = run(path, "list").stdout
    for shown in ("bot", "user, operator", "a*", "max requests in flight 4, weight 0.5"):
        assert shown in listed
    assert secret not in listed

    assert run(path, "revoke", "bot").stdout == "bot is revoked.\n"
    assert opened(path).keys.all == ()


def test_json(path: Path) -> None:
    created = json.loads(run(path, "create", "bot", "--weight", "0.5", "--json").stdout)
    assert (created["name"], created["weight"]) == ("bot", 0.5)
    assert created["secret"].startswith(SECRET_PREFIX)
    (listed,) = json.loads(run(path, "list", "--json").stdout)["keys"]
    assert listed["name"] == "bot"
    assert "secret" not in listed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["create", "a b"], "NAME: a key's name has at most 64 letters"),
        (["create", "admin"], "NAME: admin is the server's own name"),
        (["create", "a", "--role", "root"], "--role: "),
        (["create", "a", "--adapter", "a b"], "--adapter: "),
        (["create", "a", "--weight", "0"], "--weight: "),
        (["create", "a", "--role", "admin", "--adapter", "x"], "an admin can make itself a key"),
        (["create", "taken"], "there is a key taken already"),
        (["revoke", "other"], "no key is called 'other'"),
        (["revoke", "../a"], "a key's name has at most 64 letters"),
    ],
)
def test_refusals(path: Path, arguments: list[str], sentence: str) -> None:
    run(path, "create", "taken")
    before = path.read_text()
    result = run(path, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"softserve: {sentence}")
    assert path.read_text() == before


def test_a_file_that_is_none(path: Path) -> None:
    assert "there is no file of keys" in run(path, "list").stderr
    path.write_text(json.dumps({"password": "swordfish"}))
    for command in (["list"], ["create", "a"], ["revoke", "a"]):
        result = run(path, *command)
        assert result.exit_code == 1
        assert "is not a file of keys" in result.stderr
        assert "swordfish" not in result.output


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(tmp_path / "file" / "keys.json", "create", "a")
    assert result.exit_code == 1
    assert result.stderr.startswith("softserve: ")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def admin(path: Path) -> str:
    return run(path, "create", "root", "--role", "admin").stdout.strip()


@pytest.fixture
def url(tmp_path: Path, path: Path, admin: str) -> Iterator[str]:
    with served(tmp_path, keys_file=path) as url:
        yield url


def asked(url: str, *arguments: str, stdin: str | None = None, **options: str) -> Result:
    environment = {"SOFTSERVE_URL": url, "COLUMNS": "200"} | options
    return CliRunner().invoke(cli, arguments, env=environment, input=stdin)


def test_a_running_server_is_asked(url: str, admin: str) -> None:
    limits = ["--prompt-tokens-per-minute", "5", "--template", "a"]
    created = asked(url, "create", "bot", *limits, SOFTSERVE_API_KEY=admin)
    secret = created.stdout.strip()
    assert secret.startswith(SECRET_PREFIX)
    listed = asked(url, "list", SOFTSERVE_ADMIN_KEY=admin).stdout
    assert "prompt tokens per minute 5" in listed
    assert "root" in listed

    usage = asked(url, "usage", "--key", "-", stdin=f"{secret}\n").stdout
    assert usage.startswith("since ")
    refused = asked(url, "list", "--key", secret)
    assert "the key bot does not have the role admin" in refused.stderr
    again = asked(url, "create", "bot", SOFTSERVE_API_KEY=admin)
    assert "there is a key bot already" in again.stderr

    assert asked(url, "revoke", "bot", SOFTSERVE_API_KEY=admin).stdout == "bot is revoked.\n"
    assert "not known here" in asked(url, "usage", "--key", secret).stderr
    assert "the last key" in asked(url, "revoke", "root", SOFTSERVE_API_KEY=admin).stderr
    for result in (created, refused, again):
        assert admin not in result.output


def test_usage_is_shown_by_key(url: str, path: Path) -> None:
    operator = run(path, "create", "watch", "--role", "operator", "--role", "user").stdout.strip()
    wait_until_known(url, operator)
    headers = {"authorization": f"Bearer {operator}"}
    body = {"prompt": "hello", "max_new_tokens": 3}
    for _ in range(2):
        httpx.post(f"{url}/generate", json=body, headers=headers, trust_env=False)
    row = asked(url, "usage", SOFTSERVE_API_KEY=operator).stdout.splitlines()[-1].split()
    assert row[:2] == ["watch", "2"]


def wait_until_known(url: str, secret: str) -> None:
    """The server follows the file."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    headers = {"authorization": f"Bearer {secret}"}
    while not httpx.get(f"{url}/info", headers=headers, trust_env=False).is_success:
        assert time.monotonic() < deadline, "the key is not known"
        time.sleep(0.05)


def test_no_secret_on_the_screen_where_there_is_a_default(admin: str) -> None:
    told = CliRunner().invoke(cli, ["list", "--help"], env={"SOFTSERVE_API_KEY": admin})
    assert "SOFTSERVE_API_KEY" in told.output
    assert admin not in told.output
