"""Keys over HTTP: who comes in, what each role may, and which names a key may use."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from starlette.routing import Route

from softserve.schema.keys import ROLES
from tests.adapter_files import write_lora
from tests.api.connections import listening, post, sent
from tests.api.support import Served, client_of, error_of, serving, starting, until
from tests.fake_engine import ARCHITECTURE, FakeEngine
from tests.key_files import Headers, bearer, new_key, opened

TEMPLATE = {
    "input_variables": ["text"],
    "example_format": "{{ text }} = {{ output }}",
    "query_format": "{{ text }} =",
}
INPUTS = {"text": "hello"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def admin(path: Path) -> Headers:
    return new_key(path, "root", "admin")


@pytest.fixture
def user(path: Path, admin: Headers) -> Headers:
    return new_key(path, "bot")


@pytest.fixture
def operator(path: Path, admin: Headers) -> Headers:
    return new_key(path, "watch", "operator")


def text_of(path: Path) -> str:
    return path.read_text()


def put(path: Path, text: str | None) -> None:
    """In the place of what is there; None takes it away."""
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)


def names_in(response: httpx.Response, what: str) -> list[str]:
    return [each["name"] for each in response.json()[what]]


# Who comes in.

ROUTES = [
    ("POST", "/generate", {"user"}),
    ("POST", "/inspect", {"user"}),
    ("POST", "/v1/completions", {"user"}),
    ("POST", "/v1/chat/completions", {"user"}),
    ("POST", "/v1/responses", {"user"}),
    ("GET", "/v1/models", {"user"}),
    ("GET", "/v1/models/a", {"user"}),
    ("POST", "/tokenize", {"user"}),
    ("POST", "/detokenize", {"user"}),
    ("POST", "/icl/generate", {"user"}),
    ("POST", "/icl/render", {"user"}),
    ("GET", "/adapters", {"user", "admin"}),
    ("GET", "/adapters/a", {"user", "admin"}),
    ("PUT", "/adapters/a", {"admin"}),
    ("POST", "/adapters/a/rollback", {"admin"}),
    ("POST", "/adapters/a/split", {"admin"}),
    ("POST", "/adapters/a/promote", {"admin"}),
    ("POST", "/adapters/a/shadow", {"admin"}),
    ("DELETE", "/adapters/a/shadow", {"admin"}),
    ("DELETE", "/adapters/a", {"admin"}),
    ("GET", "/icl/templates", {"user", "admin"}),
    ("GET", "/icl/templates/a", {"user", "admin"}),
    ("PUT", "/icl/templates/a", {"admin"}),
    ("POST", "/icl/templates/a/rollback", {"admin"}),
    ("POST", "/icl/templates/a/split", {"admin"}),
    ("POST", "/icl/templates/a/promote", {"admin"}),
    ("POST", "/icl/templates/a/shadow", {"admin"}),
    ("DELETE", "/icl/templates/a/shadow", {"admin"}),
    ("DELETE", "/icl/templates/a", {"admin"}),
    ("GET", "/keys", {"admin"}),
    ("POST", "/keys", {"admin"}),
    ("DELETE", "/keys/a", {"admin"}),
    ("GET", "/usage", {"user", "operator", "admin"}),
    ("GET", "/metrics", {"operator"}),
    ("POST", "/drain", {"operator"}),
    ("GET", "/info", {"user", "operator", "admin"}),
    ("GET", "/docs", {"user", "operator", "admin"}),
    ("GET", "/docs/swagger-ui.css", {"user", "operator", "admin"}),
    ("GET", "/redoc", {"user", "operator", "admin"}),
    ("GET", "/openapi.json", {"user", "operator", "admin"}),
    ("HEAD", "/info", {"user", "operator", "admin"}),
    ("HEAD", "/metrics", {"operator"}),
    ("HEAD", "/adapters", {"user", "admin"}),
]
OPEN = {"/health/live", "/health/ready", "/", "/playground/app.js"}
# A route, and the path that stands for all of its files.
FILES = {
    "/docs/{path:path}": "/docs/swagger-ui.css",
    "/playground/{path:path}": "/playground/app.js",
}


PARAMETER = re.compile(r"\{[^}]+\}")


async def test_every_route_is_in_the_table(path: Path, admin: Headers) -> None:
    async with serving(keys_file=path) as served:
        routes = {
            (method, path)
            for route in served.app.routes
            if isinstance(route, Route)
            for path in [FILES.get(route.path, PARAMETER.sub("a", route.path))]
            for method in route.methods or ()
            if method != "HEAD" and path not in OPEN
        }
    assert routes == {(method, path) for method, path, _ in ROUTES if method != "HEAD"}


@pytest.mark.parametrize(("method", "route", "roles"), ROUTES)
async def test_what_each_role_may(method: str, route: str, roles: set[str], path: Path) -> None:
    keys = {role: new_key(path, f"a-{role}", role) for role in ROLES}
    async with serving(keys_file=path) as served:
        without = await served.client.request(method, route)
        answers = {
            role: await served.client.request(method, route, headers=headers)
            for role, headers in keys.items()
        }
    assert (without.status_code, without.headers["www-authenticate"]) == (401, "Bearer")
    permitted = {role for role, answer in answers.items() if answer.status_code not in (401, 403)}
    assert permitted == roles


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("route", sorted(OPEN))
async def test_health_and_the_playground_are_open(
    method: str, route: str, path: Path, admin: Headers
) -> None:
    async with serving(keys_file=path) as served:
        for headers in ({}, bearer("wrong")):
            assert (await served.client.request(method, route, headers=headers)).is_success


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer wrong", "Basic eDp5", "sk-softserve-x", "Bearer \xff\x80"],
)
async def test_what_is_no_key(authorization: str, path: Path, admin: Headers) -> None:
    headers = {b"authorization": authorization.encode("latin-1")}
    async with serving(keys_file=path) as served:
        response = await served.client.get("/info", headers=headers)
    assert error_of(response) == (401, "key_required", None)


async def test_the_scheme_is_told_by_any_letters(path: Path, user: Headers) -> None:
    headers = {"authorization": user["authorization"].replace("Bearer", "bEARER")}
    async with serving(keys_file=path) as served:
        assert (await served.client.get("/info", headers=headers)).is_success


async def test_a_key_that_is_known_is_told_what_it_lacks(path: Path, user: Headers) -> None:
    async with serving(keys_file=path) as served:
        response = await served.client.get("/metrics", headers=user)
    assert error_of(response) == (403, "not_permitted", None)
    assert "the key bot does not have the role operator" in response.text


async def test_it_is_refused_before_the_body_is_read(path: Path, user: Headers) -> None:
    """Also of a route whose body FastAPI reads: wrong JSON would be 400."""
    async with serving(keys_file=path) as served:
        for headers, status in ((bearer("wrong"), 401), (user, 400)):
            response = await served.client.post(
                "/generate", content=b"{", headers=headers | {"content-type": "application/json"}
            )
            assert response.status_code == status


async def test_without_a_key_before_the_engine_has_started(path: Path, user: Headers) -> None:
    engine = FakeEngine()
    engine.hold_start()
    async with starting(engine, keys_file=path) as served:
        assert error_of(await served.generate())[0] == 401
        response = await served.client.post("/generate", json={}, headers=user)
        assert error_of(response)[:2] == (503, "engine_starting")


# The ways to run a server.


async def test_with_an_admin_key_alone_the_rest_may_generate() -> None:
    async with serving(admin_key="secret") as served, client_of(served.app, "10.0.0.1") as other:
        for client in (served.client, other):
            for route in ("/info", "/adapters", "/metrics", "/docs"):
                assert (await client.get(route)).is_success
            generated = await client.post("/generate", json={"prompt": "a"})
            assert generated.is_success
            for method, route in (("GET", "/keys"), ("POST", "/drain"), ("DELETE", "/adapters/a")):
                response = await client.request(method, route)
                assert error_of(response) == (401, "key_required", None)
            wrong = await client.get("/info", headers=bearer("wrong"))
            assert error_of(wrong) == (401, "key_required", None)
            right = await client.post("/drain", headers=bearer("secret"))
            assert right.status_code == 202


async def test_the_admin_key_beside_a_file(path: Path, user: Headers) -> None:
    async with serving(keys_file=path, admin_key="secret") as served:
        for headers in (bearer("secret"), user):
            generated = await served.client.post("/generate", json={"prompt": "a"}, headers=headers)
            assert generated.is_success
        assert error_of(await served.generate())[0] == 401
        assert names_in(await served.client.get("/keys", headers=bearer("secret")), "keys") == [
            "bot",
            "root",
        ]


async def test_strangers_beside_a_file(path: Path, user: Headers) -> None:
    async with serving(keys_file=path, allow_anonymous=True) as served:
        assert (await served.generate()).is_success
        assert error_of(await served.get("/metrics")) == (401, "key_required", None)
        assert error_of(await served.get("/keys")) == (401, "key_required", None)
        wrong = await served.client.get("/info", headers=bearer("wrong"))
        assert error_of(wrong) == (401, "key_required", None)


async def test_without_any_key_this_machine_may_do_everything() -> None:
    async with serving() as served, client_of(served.app, "10.0.0.1") as other:
        assert error_of(await served.get("/keys"))[:2] == (409, "key_conflict")
        assert error_of(await other.get("/keys"))[:2] == (403, "not_permitted")
        assert error_of(await other.post("/drain"))[:2] == (403, "not_permitted")
        assert served.stops == []
        assert (await served.client.post("/drain")).status_code == 202
        assert served.stops == [None]
        # There is nothing to compare it with.
        assert (await other.get("/info", headers=bearer("whatever"))).is_success


@pytest.mark.parametrize(
    ("setting", "routes"),
    [
        ("open_metrics", ["/metrics"]),
        ("open_docs", ["/docs", "/docs/swagger-ui.css", "/redoc", "/openapi.json", "/info"]),
    ],
)
async def test_what_is_open_by_choice(
    setting: str, routes: list[str], path: Path, admin: Headers
) -> None:
    chosen: dict[str, Any] = {setting: True}
    async with serving(keys_file=path, **chosen) as served:
        opened = {route for _, route, _ in ROUTES if (await served.get(route)).is_success}
    assert opened == set(routes)


# Keys are made and revoked.


async def test_a_key_is_made_used_and_revoked(
    path: Path, admin: Headers, events: list[structlog.typing.EventDict]
) -> None:
    async with serving(keys_file=path) as served:
        body = {"name": "bot", "max_requests_in_flight": 3, "expires_in_days": 2}
        made = await served.client.post("/keys", json=body, headers=admin)
        assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
        secret = made.json()["secret"]
        assert (await served.client.get("/info", headers=bearer(secret))).is_success
        listed = await served.client.get("/keys", headers=admin)
        (told,) = [each for each in listed.json()["keys"] if each["name"] == "bot"]
        assert made.json() == {**told, "secret": secret}
        assert (told["roles"], told["max_requests_in_flight"]) == (["user"], 3)
        assert told["expires_at"] > told["created_at"]
        assert secret not in text_of(path)
        again = await served.client.post("/keys", json=body, headers=admin)
        assert error_of(again) == (409, "key_conflict", "name")

        assert (await served.client.delete("/keys/bot", headers=admin)).status_code == 204
        response = await served.client.get("/info", headers=bearer(secret))
        assert error_of(response) == (401, "key_required", None)
        gone = await served.client.delete("/keys/bot", headers=admin)
        assert error_of(gone) == (404, "key_not_found", "name")
    told = [(each["event"], each["name"], each["by"]) for each in events if "by" in each]
    assert told == [("a key is made", "bot", "root"), ("a key is revoked", "bot", "root")]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "admin"}, "name"),
        ({"name": "anonymous"}, "name"),
        ({"name": "a", "roles": []}, "roles"),
        ({"name": "a", "roles": ["root"]}, "roles"),
        ({"name": "a", "roles": ["admin"], "adapters": ["a*"]}, "roles"),
        ({"name": "a", "adapters": ["a b"]}, "adapters"),
        ({"name": "a", "weight": 0}, "weight"),
        ({"name": "a", "max_requests_in_flight": 0}, "max_requests_in_flight"),
        ({"name": "a", "expires_in_days": 0}, "expires_in_days"),
        ({"name": "a", "expires_in_days": 1e300}, "expires_in_days"),
        ({"name": "a", "secret": "mine"}, "secret"),
    ],
)
async def test_what_cannot_be_a_key(
    body: dict[str, Any], param: str, path: Path, admin: Headers
) -> None:
    async with serving(keys_file=path) as served:
        response = await served.client.post("/keys", json=body, headers=admin)
        assert error_of(response) == (422, "invalid_request", param)
        assert names_in(await served.client.get("/keys", headers=admin), "keys") == ["root"]


async def test_the_last_admin_stays(path: Path, admin: Headers, user: Headers) -> None:
    async with serving(keys_file=path) as served:
        response = await served.client.delete("/keys/root", headers=admin)
        assert error_of(response)[:2] == (409, "key_conflict")
        new_key(path, "second", "admin")
        assert (await served.client.delete("/keys/root", headers=admin)).status_code == 204
    async with serving(keys_file=path, admin_key="secret") as served:
        # Whoever has that can make another.
        response = await served.client.delete("/keys/second", headers=bearer("secret"))
        assert response.status_code == 204


async def test_many_keys_made_at_once(path: Path, admin: Headers) -> None:
    async with serving(keys_file=path) as served:
        answers = await asyncio.gather(
            *(
                served.client.post("/keys", json={"name": f"k{i % 10}"}, headers=admin)
                for i in range(20)
            )
        )
        listed = names_in(await served.client.get("/keys", headers=admin), "keys")
    assert sorted(answer.status_code for answer in answers) == [201] * 10 + [409] * 10
    assert listed == sorted([*(f"k{i}" for i in range(10)), "root"])


async def test_the_file_is_followed(
    path: Path, admin: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.access.key_file.CHECK_INTERVAL_SECONDS", 0.01)
    async with serving(keys_file=path) as served:
        door = served.app.state.door
        added = new_key(path, "late")
        await until(lambda: len(door.file.keys.all) == 2)
        assert (await served.client.get("/info", headers=added)).is_success
        opened(path).revoke("late", keep_an_admin=False)
        await until(lambda: len(door.file.keys.all) == 1)
        assert (await served.client.get("/info", headers=added)).status_code == 401


@pytest.mark.parametrize("damage", ["", '{"keys": [{"na', '{"keys": [{}]}', "\xff", None])
async def test_a_damaged_file_changes_nothing(
    damage: str | None,
    path: Path,
    admin: Headers,
    monkeypatch: pytest.MonkeyPatch,
    events: list[structlog.typing.EventDict],
) -> None:
    monkeypatch.setattr("app.access.key_file.CHECK_INTERVAL_SECONDS", 0.01)
    whole = text_of(path)
    async with serving(keys_file=path) as served:
        put(path, damage)
        await until(lambda: any("cannot be used" in event["event"] for event in events))
        assert (await served.client.get("/info", headers=admin)).is_success
        if damage is not None:
            made = await served.client.post("/keys", json={"name": "a"}, headers=admin)
            assert error_of(made)[:2] == (409, "key_conflict")
        put(path, whole)
        made = await served.client.post("/keys", json={"name": "a"}, headers=admin)
        assert made.status_code == 201


# The names that a key may use.


@asynccontextmanager
async def team(tmp_path: Path, **patterns: list[str]) -> AsyncIterator[tuple[Served, Headers]]:
    """A server with the adapters and templates `ours-1` and `theirs-1`, and a key of a team."""
    path = tmp_path / "keys.json"
    admin, ours = new_key(path, "root", "admin"), new_key(path, "team", "user", **patterns)
    for name in ("ours-1", "theirs-1"):
        write_lora(tmp_path / "adapters" / name, ARCHITECTURE.modules)
    async with serving(keys_file=path, adapter_dir=tmp_path / "adapters") as served:
        for name in ("ours-1", "theirs-1"):
            body = TEMPLATE | {"adapter": name}
            put = await served.client.put(f"/icl/templates/{name}", json=body, headers=admin)
            assert put.is_success
        served.client.headers = httpx.Headers(ours)
        yield served, ours


async def test_the_adapters_of_a_key(tmp_path: Path) -> None:
    async with team(tmp_path, adapters=["ours-*", "other"]) as (served, _):
        assert names_in(await served.get("/adapters"), "adapters") == ["ours-1"]
        assert (await served.get("/adapters/ours-1")).is_success
        assert (await served.generate(adapter="ours-1")).is_success
        assert (await served.generate()).is_success
        version = (await served.get("/adapters/ours-1")).json()["live"]
        assert (await served.generate(adapter=f"ours-1@{version}")).is_success

        answers = {}
        for name in (
            "theirs-1",
            "theirs-2",
            f"theirs-1@{version}",
            "theirs-1#0",
            "",
            "@",
            "#x@ours-1",
        ):
            for field in ("adapter", "soft_prompt"):
                if name:
                    response = await served.generate(**{field: name})
                    assert error_of(response) == (403, "not_permitted", field)
                    answers[name] = response.text
        # One that is there is told from one that is not by nothing.
        assert answers["theirs-1"].replace("-1", "-2") == answers["theirs-2"]
        for name in ("theirs-1", "theirs-2"):
            shown = await served.get(f"/adapters/{name}")
            assert error_of(shown) == (403, "not_permitted", "name")


async def test_no_other_name_is_suggested(tmp_path: Path) -> None:
    async with team(
        tmp_path, adapters=["ours-*", "theirs-2"], templates=["ours-*", "theirs-2"]
    ) as (
        served,
        _,
    ):
        few_shot = {"template": "theirs-2", "inputs": INPUTS}
        for response in (
            await served.generate(adapter="theirs-2"),
            await served.get("/adapters/theirs-2"),
            await served.client.post("/icl/generate", json=few_shot),
            await served.get("/icl/templates/theirs-2"),
        ):
            assert response.status_code == 404
            assert "theirs-1" not in response.text


async def test_the_templates_of_a_key(tmp_path: Path) -> None:
    async with team(tmp_path, templates=["ours-?"]) as (served, _):
        assert names_in(await served.get("/icl/templates"), "templates") == ["ours-1"]
        assert (await served.get("/icl/templates/ours-1")).is_success
        shown = await served.get("/icl/templates/theirs-1")
        assert error_of(shown) == (403, "not_permitted", "name")
        for route in ("/icl/generate", "/icl/render"):
            body = {"template": "ours-1", "inputs": INPUTS}
            assert (await served.client.post(route, json=body)).is_success
            response = await served.client.post(route, json=body | {"template": "theirs-1"})
            assert error_of(response) == (403, "not_permitted", "template")
            # What a client wrote itself shows nothing of others.
            response = await served.client.post(route, json=body | {"template": TEMPLATE})
            assert response.is_success


@pytest.mark.parametrize("route", ["/icl/generate", "/icl/render"])
async def test_a_template_gives_no_adapter_away(tmp_path: Path, route: str) -> None:
    async with team(tmp_path, adapters=["ours-1"]) as (served, _):
        for template in ("theirs-1", TEMPLATE | {"adapter": "theirs-1"}):
            body = {"template": template, "inputs": INPUTS}
            response = await served.client.post(route, json=body)
            assert error_of(response) == (403, "not_permitted", "adapter")
            without = await served.client.post(route, json=body | {"adapter": None})
            assert without.is_success


# Where a secret has no place.


async def test_a_secret_is_shown_nowhere(
    path: Path, admin: Headers, events: list[structlog.typing.EventDict]
) -> None:
    secret = admin["authorization"].removeprefix("Bearer ")
    async with serving(keys_file=path, open_docs=True, open_metrics=True) as served:
        requests: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", f"/adapters?key={secret}", {}),
            ("GET", f"/{secret}", {}),
            ("GET", f"/adapters/{secret}", {"headers": admin}),
            ("GET", "/info", {"headers": {"x-request-id": secret}}),
            ("GET", "/info", {"headers": {"x-api-key": secret}}),
            ("POST", "/keys", {"json": {"name": secret + "!"}, "headers": admin}),
            ("POST", "/keys", {"json": {"name": "a", secret: 1}, "headers": admin}),
            ("POST", "/keys", {"json": {"name": "a", "weight": secret}, "headers": admin}),
            ("POST", "/keys", {"content": secret, "headers": admin}),
            ("DELETE", f"/keys/{secret}", {"headers": admin}),
            ("GET", "/info", {"headers": {b"authorization": f"Basic {secret}\xff".encode()}}),
        ]
        for method, route, fields in requests:
            response = await served.client.request(method, route, **fields)
            assert secret not in response.text
            assert secret not in str(response.headers)
        for route in ("/metrics", "/info", "/openapi.json"):
            assert secret not in (await served.get(route)).text
    shown = [event for event in events if secret in json.dumps(event, default=repr)]
    # What a log line of such a path shows is cut by the log: tests/unit/test_logs.py.
    assert {event["path"] for event in shown} == {
        f"/{secret}",
        f"/adapters/{secret}",
        f"/keys/{secret}",
    }


# On real sockets.


async def test_a_key_is_revoked_on_a_connection_that_stays_open(
    path: Path, admin: Headers, user: Headers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with listening(monkeypatch, tmp_path, keys_file=path) as (host, port):
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", limits=limits) as client:
            statuses = [(await client.get("/info", headers=user)).status_code]
            revoked = await client.delete("/keys/bot", headers=admin)
            statuses.append((await client.get("/info", headers=user)).status_code)
    assert revoked.status_code == 204
    assert statuses == [200, 401]


async def test_what_a_key_has_running_goes_on_when_it_is_revoked(
    path: Path, admin: Headers, user: Headers
) -> None:
    engine = FakeEngine()
    async with serving(engine, keys_file=path) as served:
        engine.hold()
        running = asyncio.create_task(
            served.client.post("/generate", json={"prompt": "a"}, headers=user)
        )
        await until(lambda: len(engine.open) == 1)
        assert (await served.client.delete("/keys/bot", headers=admin)).status_code == 204
        engine.release()
        assert (await running).is_success


async def test_a_large_body_without_a_key_is_not_asked_for(
    path: Path, admin: Headers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with listening(monkeypatch, tmp_path, keys_file=path) as address:
        request = post(b" " * 1000, "expect: 100-continue")
        answer = await sent(address, request.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    assert (answer.status, answer.error["type"]) == (401, "key_required")
