"""Keys on a real server, from the file to its end by `POST /drain`."""

import json
from pathlib import Path

import httpx

from app.access.usage import FILE_NAME
from tests.key_files import bearer, new_key, opened
from tests.server.process import running, wait_until
from tests.server.requests import generate
from tests.server.tiny_models import SMALL

PLENTY_SECONDS = 30.0


def wait_for(client: httpx.Client, status: int) -> None:
    """The server follows the file of keys."""
    wait_until(lambda: client.get("/info").status_code == status, PLENTY_SECONDS)


def test_keys_from_the_file_to_the_end(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    operator = new_key(path, "watch", "operator")
    user = new_key(path, "bot", adapters=["ours-*"])
    flags = ["--model", str(tiny_model), "--host", "0.0.0.0", f"--keys-file={path}"]  # noqa: S104
    with running(*SMALL, *flags, folder=tmp_path) as server:
        server.wait_until_ready()
        url = server.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        with httpx.Client(base_url=url, timeout=60.0) as client:
            assert client.get("/health/ready").status_code == 200
            assert client.get("/info").status_code == 401
            # Not 422: the body is not looked at.
            assert client.post("/generate", json={"n": 0}).status_code == 401
            client.headers = httpx.Headers(user)
            made = generate(client, prompt="Hello", max_new_tokens=4)
            named = client.post("/generate", json={"prompt": "a", "adapter": "theirs"})
            assert (named.status_code, named.json()["error"]["param"]) == (403, "adapter")
            page = client.post(
                "/generate", json={"prompt": "a"}, headers={"origin": "http://evil.example"}
            )
            assert page.status_code == 403

            late = new_key(path, "late")
            client.headers = httpx.Headers(late)
            wait_for(client, 200)
            opened(path).revoke("late", keep_an_admin=False)
            wait_for(client, 401)

            client.headers = httpx.Headers(operator)
            (row,) = client.get("/usage").json()["usage"]
            assert client.post("/drain", headers=bearer("wrong")).status_code == 401
            assert client.post("/drain").status_code == 202
        assert server.wait_for_exit() == 0
        log = "".join(server.log)
    for headers in (operator, user, late):
        assert headers["authorization"].removeprefix("Bearer ") not in log
    assert (row["key"], row["requests"]) == ("bot", 1)
    assert row["completion_tokens"] == made["usage"]["completion_tokens"] > 0
    assert json.loads((server.adapter_store / FILE_NAME).read_text())["usage"] == [row]
