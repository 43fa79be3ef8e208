"""What a page in somebody's browser can have it send."""

from typing import Any

import pytest

from tests.api.support import error_of, serving

EVIL = "http://evil.example"
LISTED = "https://app.example"
SAME = "http://softserve"
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({}, True),
        ({"origin": SAME}, True),
        ({"origin": "https://softserve"}, True),
        ({"sec-fetch-site": "same-origin", "origin": SAME}, True),
        ({"sec-fetch-site": "none"}, True),
        (LINK, True),
        ({"origin": LISTED}, True),
        ({"origin": LISTED, "sec-fetch-site": "cross-site"}, True),
        ({"origin": EVIL}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": f"{SAME}.evil.example"}, False),
        ({"origin": f"{SAME}:8001"}, False),
        ({"origin": f"{LISTED}.evil.example"}, False),
        ({"origin": EVIL, "sec-fetch-site": "cross-site"}, False),
        ({"origin": f"{SAME}:8001", "sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, False),
        (LINK | {"sec-fetch-dest": "iframe"}, False),
        (LINK | {"origin": EVIL}, False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_who_is_let_in(method: str, headers: dict[str, str], is_let_in: bool) -> None:
    async with serving(cors_origin=(LISTED,)) as served:
        response = await served.client.request(method, "/generate", headers=headers)
    if is_let_in:
        assert response.status_code != 403
    else:
        assert error_of(response) == (403, "not_permitted", None)
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(("listed", "allowed"), [((), None), ((LISTED,), LISTED)])
async def test_cors_is_for_listed_sites(listed: tuple[str, ...], allowed: str | None) -> None:
    preflight = {
        "origin": LISTED,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    async with serving(cors_origin=listed) as served:
        asked = await served.client.options("/generate", headers=preflight)
        generated = await served.client.post(
            "/generate", json={"prompt": "a"}, headers={"origin": LISTED}
        )
        refused = await served.client.post("/generate", json={}, headers={"origin": LISTED})
    for response in (asked, generated, refused):
        assert response.headers.get("access-control-allow-origin") == allowed
        assert "access-control-allow-credentials" not in response.headers
    assert asked.is_success == generated.is_success == (allowed is not None)


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("localhost.", True),
        ("app.localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("192.0.2.1", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("softserve", False),
        ("evil.example#localhost", False),
        ("localhost@evil.example", False),
        ("[", False),
    ],
)
async def test_a_name_that_was_made_to_lead_here(host: str, is_own: bool) -> None:
    headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    async with serving(trusted_host=()) as served:
        response = await served.client.get("/info", headers=headers)
    assert response.status_code == (200 if is_own else 403)


@pytest.mark.parametrize(
    ("settings", "is_any"),
    [
        ({}, False),
        ({"admin_key": "secret"}, False),
        ({"allow_anonymous": True}, True),
        ({"allow_anonymous": True, "trusted_host": ("Softserve",)}, False),
    ],
)
async def test_where_the_name_counts(settings: dict[str, Any], is_any: bool) -> None:
    names = {"trusted_host": ()} | settings
    async with serving(**names) as served:
        other = await served.client.get("/info", headers={"host": "other.example"})
        assert other.is_success == is_any
        own = await served.client.get("/info", headers={"host": "softserve:80"})
        assert own.is_success == (is_any or "trusted_host" in settings)
