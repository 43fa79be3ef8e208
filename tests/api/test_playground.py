"""How the playground is served: where it is, what it may do, and what it weighs."""

import gzip
import re
from pathlib import Path

import pytest

from app.http import application
from softserve.schema.controls import CONTROLS
from tests.api.support import Served, error_of, serving
from tests.fake_engine import FakeEngine

FOLDER = Path(application.__file__).with_name("playground")
FILES = sorted(
    str(file.relative_to(FOLDER))
    for file in FOLDER.rglob("*")
    if file.suffix in {".js", ".css", ".svg", ".html"}
)
ADDRESS = re.compile(r"https?://[\w.-]+")
# A namespace, which nobody fetches.
NAMESPACES = {"http://www.w3.org"}
MAX_COMPRESSED_BYTES = 100_000


def test_every_control_has_its_place() -> None:
    groups = (FOLDER / "schema.js").read_text().partition("GROUPS = [")[2].partition("];")[0]
    assert set(CONTROLS) <= set(re.findall(r'"(\w+)"', groups))


async def test_the_page_is_at_the_root(served: Served) -> None:
    page = await served.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert 'src="playground/app.js"' in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in policy


@pytest.mark.parametrize("file", FILES)
async def test_every_file_is_served(file: str, served: Served) -> None:
    answer = await served.get(f"/playground/{file}")
    assert answer.content == (FOLDER / file).read_bytes()
    assert answer.headers["x-content-type-options"] == "nosniff"
    if file.endswith(".js"):
        assert answer.headers["content-type"].startswith("text/javascript")


async def test_what_is_known_is_not_sent_again(served: Served) -> None:
    first = await served.get("/playground/app.js")
    headers = {"if-none-match": first.headers["etag"]}
    again = await served.client.get("/playground/app.js", headers=headers)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]


async def test_it_is_compressed(served: Served) -> None:
    packed = await served.client.get("/playground/app.js", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    plain = await served.client.get("/playground/app.js", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.text == packed.text


def test_the_whole_page_is_small() -> None:
    sizes = [len(gzip.compress((FOLDER / file).read_bytes())) for file in FILES]
    assert sum(sizes) < MAX_COMPRESSED_BYTES


@pytest.mark.parametrize("file", FILES)
def test_no_file_names_another_address(file: str) -> None:
    assert set(ADDRESS.findall((FOLDER / file).read_text())) <= NAMESPACES


@pytest.mark.parametrize("path", ["nothing.js", "", "views", "..%2Fguard.py", "%2Fetc%2Fpasswd"])
async def test_what_is_no_file(path: str, served: Served) -> None:
    assert error_of(await served.get(f"/playground/{path}")) == (404, "not_found", None)


@pytest.mark.parametrize(
    ("settings", "is_there"),
    [
        ({}, True),
        ({"host": "::1"}, True),
        ({"host": "localhost"}, True),
        ({"host": "0.0.0.0"}, False),  # noqa: S104
        ({"host": "softserve.example"}, False),
        ({"host": "0.0.0.0", "playground": True}, True),  # noqa: S104
        ({"playground": False}, False),
    ],
)
async def test_where_it_is(settings: dict[str, object], is_there: bool) -> None:
    async with serving(FakeEngine(), **settings) as served:
        for path in ("/", "/playground/app.js"):
            assert (await served.get(path)).status_code == (200 if is_there else 404)


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_documentation_needs_no_other_address(path: str, served: Served) -> None:
    page = await served.get(path)
    assert set(ADDRESS.findall(page.text)) <= {"https://developer.mozilla.org"}
    files = re.findall(r'(?:src|href)="(/docs/[^"]+)"', page.text)
    assert len(files) >= 2
    for file in files:
        assert (await served.get(file)).is_success
