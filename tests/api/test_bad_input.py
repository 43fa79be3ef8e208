"""Whatever a client sends: a 4xx, the one error body, and the next request is answered."""

import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from tests.api.support import Served, error_of, serving
from tests.bad_bodies import BAD_BODIES
from tests.fake_engine import FakeEngine


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [pytest.param(*rest, id=name) for name, *rest in BAD_BODIES],
)
async def test_bad_body(served: Served, body: bytes, status: int, param: str | None) -> None:
    response = await served.post_bytes("/generate", body)
    assert (response.status_code, error_of(response)[2]) == (status, param), response.text
    assert (await served.generate("still here")).status_code == 200


def test_bad_bodies_have_names_of_their_own() -> None:
    names = [name for name, *_ in BAD_BODIES]
    assert len(set(names)) == len(names) > 60


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temprature": 1}, "there is no field temprature: did you mean temperature?"),
        ({"colour": 1}, "there is no field colour: GET /docs lists the fields"),
        ({"n": 0}, "n must be greater than or equal to 1, not 0"),
        ({"temperature": "hot"}, "temperature must be a valid number, not 'hot'"),
        ({"prompt": 5}, "prompt must be a text or a list of them, not 5"),
        ({"prompt": "a", "stop": True}, "stop must be a text or a list of them, not True"),
        ({"prompt": []}, "prompt is empty: write something in it, or leave it out"),
        ({"prompt": ["a", "b\0"]},
         "prompt[1]: the control character U+0000 at position 1 is not text: remove it"),
        ({"a1": 1, "a2": 2, "a3": 3, "a4": 4, "a5": 5},
         ("there is no field a1: GET /docs lists the fields; "
          "there is no field a2: GET /docs lists the fields; "
          "there is no field a3: GET /docs lists the fields; and 2 more")),
        ({"stop": list("abcdefghi")},
         "stop asks for 9 stop strings and the limit is 8: send fewer"),
        ({"stop": ["a", "<|end|>\n"]},
         ("stop has '<|end|>\\n', which never comes: the text of a completion leaves the special "
          "token <|end|> out; give that alone to stop there")),
        ({"n": 17, "temperature": 1},
         "n asks for 17 completions of each prompt and the limit is 16: send fewer"),
        ({"prompt": ["a"] * 32, "n": 16, "temperature": 1},
         ("the request asks for 512 completions (prompts times n) and the server runs at most 256 "
          "at once: split the request")),
        ({"top_k": 1000},
         "top_k is 1,000 and the vocabulary has 257 tokens: lower top_k, or leave it out"),
    ],
)  # fmt: skip
async def test_the_message_says_what_to_do(
    served: Served, fields: dict[str, object], message: str
) -> None:
    response = await served.generate(**{"prompt": "hello", **fields})
    assert response.status_code == 422
    assert response.json()["error"]["message"] == message


@pytest.mark.parametrize(
    ("num_tokens", "max_new_tokens", "advice", "param"),
    [
        (200, 100, "shorten the prompt by 44 tokens, or lower max_new_tokens to 56", "prompt"),
        (256, 1, "shorten the prompt by 1 tokens", "prompt"),
        (300, 10, "shorten the prompt by 54 tokens", "prompt"),
        (200, 300, "lower max_new_tokens to 56", "max_new_tokens"),
        (1, 99_999, "lower max_new_tokens to 255", "max_new_tokens"),
        (
            300,
            500,
            "shorten the prompt by at least 45 tokens and lower max_new_tokens",
            "max_new_tokens",
        ),
    ],
)
async def test_beyond_the_context_window(
    served: Served, num_tokens: int, max_new_tokens: int, advice: str, param: str
) -> None:
    response = await served.generate("a" * num_tokens, max_new_tokens=max_new_tokens)
    assert error_of(response) == (422, "context_window_exceeded", param)
    assert response.json()["error"]["message"] == (
        f"the prompt has {num_tokens} tokens and max_new_tokens is {max_new_tokens:,}; "
        f"the context window is 256: {advice}"
    )


async def test_the_context_window_can_be_filled(served: Served) -> None:
    response = await served.generate("a" * 200, max_new_tokens=56)
    assert response.json()["usage"]["completion_tokens"] == 56


async def test_the_prompt_at_fault_is_named(served: Served) -> None:
    response = await served.generate(["short", "a" * 300])
    assert response.json()["error"]["message"].startswith("prompt 1 has 300 tokens")


@pytest.mark.parametrize(
    ("path", "body", "which"),
    [
        ("/generate", {"prompt": "a" * 3000}, "the prompt"),
        ("/generate", {"prompt": ["a", "a" * 3000]}, "prompt 1"),
        ("/inspect", {"prompt": "a" * 3000}, "the prompt"),
        # The fake's chat template is 25 characters.
        (
            "/generate",
            {"prompt": "a", "use_chat_template": True, "system": "a" * 2974},
            "the prompt",
        ),
    ],
)
async def test_what_cannot_fit_is_refused_before_it_is_tokenized(
    served: Served, engine: FakeEngine, path: str, body: dict[str, Any], which: str
) -> None:
    response = await served.client.post(path, json=body)
    assert error_of(response) == (422, "context_window_exceeded", "prompt")
    assert response.json()["error"]["message"] == (
        f"{which} has 3,000 tokens or more; the context window is 256: "
        "shorten the prompt by at least 2,744 tokens"
    )
    assert [text for text in engine.tokenized if len(text) > 1] == []


@pytest.mark.parametrize(
    ("content_type", "said"),
    [
        ("text/plain; charset=utf-8", "as text/plain"),
        ("application/x-www-form-urlencoded", "as application/x-www-form-urlencoded"),
        ("Multipart/Form-Data; boundary=b", "as multipart/form-data"),
        ("", "without a content-type"),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/inspect", "/icl/render", "/adapters/x/rollback"])
async def test_wrong_content_type(served: Served, path: str, content_type: str, said: str) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = await served.client.post(path, content=b'{"prompt": "a"}', headers=headers)
    assert error_of(response) == (422, "invalid_request", None)
    assert response.json()["error"]["message"] == (
        f"the body was sent {said}, and JSON is wanted: add the header content-type: "
        "application/json (curl -H 'content-type: application/json')"
    )


@pytest.mark.parametrize("content_type", ["Application/JSON", "application/json; Charset=UTF-8"])
async def test_media_types_are_in_any_case(served: Served, content_type: str) -> None:
    headers = {"content-type": content_type}
    response = await served.client.post("/generate", content=b'{"prompt": "a"}', headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("text", ["tab\tline\r\n", "\u00e9\U0001f600", "\u200f", "\ufffe"])
async def test_what_is_text_is_taken(served: Served, text: str) -> None:
    response = await served.generate(text)
    assert response.json()["completions"][0]["text"] == text


@pytest.mark.parametrize(
    ("method", "path", "status", "type", "message"),
    [
        ("GET", "/nothing", 404, "not_found",
         "there is nothing at /nothing: GET /docs lists what there is"),
        ("GET", "/a{b}%7Bc", 404, "not_found",
         "there is nothing at /a{b}{c: GET /docs lists what there is"),
        ("GET", "/generate", 405, "method_not_allowed",
         "/generate does not take GET: GET /docs lists what it takes"),
        ("DELETE", "/info", 405, "method_not_allowed",
         "/info does not take DELETE: GET /docs lists what it takes"),
    ],
)  # fmt: skip
async def test_wrong_address(
    served: Served, method: str, path: str, status: int, type: str, message: str
) -> None:
    response = await served.client.request(method, path)
    assert response.status_code == status
    assert response.json() == {"error": {"type": type, "message": message, "param": None}}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/adapters/x", "DELETE, GET, HEAD, PUT"),
        ("POST", "/icl/templates/x", "DELETE, GET, HEAD, PUT"),
        ("GET", "/generate", "POST"),
        ("HEAD", "/generate", "POST"),
        ("POST", "/health/ready", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    served: Served, method: str, path: str, allowed: str
) -> None:
    response = await served.client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


async def test_head_on_whatever_has_get(served: Served) -> None:
    routes = [route for route in served.app.routes if isinstance(route, Route)]
    paths = {route.path for route in routes if "GET" in (route.methods or ())}
    assert {"/health/ready", "/metrics", "/adapters/{name}", "/docs"} <= paths
    for path in paths:
        get, head = await served.client.get(path), await served.client.head(path)
        assert get.status_code == head.status_code != 405, path
        assert get.headers["content-type"] == head.headers["content-type"], path


TOO_LARGE = {
    "error": {
        "type": "body_too_large",
        "message": "the body is over the limit of 1,000 bytes: send less at once",
        "param": None,
    }
}


async def _in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 100):
        yield body[start : start + 100]


def _body_of(num_bytes: int) -> bytes:
    return b'{"prompt": "hello"}'.ljust(num_bytes)


@pytest.mark.parametrize("path", ["/generate", "/inspect"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_body_over_the_limit(path: str, chunked: bool) -> None:
    body = _body_of(1001)
    async with serving(max_body_bytes=1000) as served:
        response = await _post(served, path, body, chunked)
        assert (response.status_code, response.json()) == (413, TOO_LARGE)


async def test_a_form_has_no_other_limit_where_none_is_wanted() -> None:
    async with serving(max_body_bytes=1000) as served:
        files = {"prompt": _body_of(1001)}
        response = await served.client.post("/generate", files=files)
        assert (response.status_code, response.json()) == (413, TOO_LARGE)


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_at_the_limit(chunked: bool) -> None:
    async with serving(max_body_bytes=1000) as served:
        response = await _post(served, "/generate", _body_of(1000), chunked)
        assert response.status_code == 200


async def _post(served: Served, path: str, body: bytes, chunked: bool) -> httpx.Response:
    return await served.client.post(
        path,
        content=_in_pieces(body) if chunked else body,
        headers={"content-type": "application/json"},
    )


async def test_limits_are_those_of_the_settings() -> None:
    limits: dict[str, Any] = {
        "max_prompts": 2,
        "max_n": 3,
        "max_stop_strings": 1,
        "max_stop_length": 4,
    }
    async with serving(**limits) as served:
        at_the_limits = {"n": 3, "temperature": 1, "stop": ["abcd"]}
        assert (await served.generate(["a", "b"], **at_the_limits)).status_code == 200
        over = {
            "prompt": await served.generate(["a", "b", "c"]),
            "n": await served.generate(n=4, temperature=1),
            "stop": await served.generate(stop=["a", "b"]),
        }
        for param, response in over.items():
            assert error_of(response) == (422, "invalid_request", param)
        assert error_of(await served.generate(stop="abcde")) == (422, "invalid_request", "stop")


async def test_a_model_without_chat_template_refuses_it() -> None:
    async with serving(FakeEngine(has_chat_template=False)) as served:
        response = await served.generate(use_chat_template=True)
        assert error_of(response) == (422, "invalid_request", "use_chat_template")
        assert (await served.generate()).status_code == 200


async def test_a_body_after_a_byte_order_mark(served: Served) -> None:
    """Clients on Windows send one."""
    response = await served.client.post(
        "/generate",
        content=b'\xef\xbb\xbf{"prompt": "Hi"}',
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 200


async def test_a_compressed_body_is_told_what_is_wanted(served: Served) -> None:
    response = await served.client.post(
        "/generate",
        content=gzip.compress(b'{"prompt": "Hi"}'),
        headers={"content-type": "application/json", "content-encoding": "gzip"},
    )
    assert response.status_code == 400
    assert "not compressed" in response.json()["error"]["message"]
