"""A disk that cannot be written: 503 with a sentence, and what was live stays live."""

import errno
import os
import tempfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.errors import StoreUnavailable
from tests.adapter_files import as_files, lora_config, lora_tensors
from tests.api.support import Served, error_of
from tests.fake_engine import ARCHITECTURE

TEMPLATE = {
    "input_variables": ["text"],
    "example_format": "{{ text }} = {{ output }}",
    "query_format": "{{ text }} =",
}

# Root may write wherever it likes: it is the call that fails, not a permission that is missing.
FAILING_CALLS = [
    (os, "fsync", errno.ENOSPC),
    (os, "fsync", errno.EIO),
    (os, "replace", errno.EROFS),
    (tempfile, "mkdtemp", errno.EROFS),
    (tempfile, "mkdtemp", errno.EACCES),
]


def _failing(code: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


async def _put_adapter(served: Served, seed: int) -> httpx.Response:
    files = as_files(lora_config(4), lora_tensors(ARCHITECTURE.modules, 4, seed))
    return await served.client.put("/adapters/mine", files=[("file", file) for file in files])


async def _put_template(served: Served, instruction: str) -> httpx.Response:
    body = TEMPLATE | {"instruction": instruction}
    return await served.client.put("/icl/templates/mine", json=body)


def _assert_refused(response: httpx.Response, store: str, code: int) -> None:
    assert error_of(response) == (503, "store_unavailable", None)
    assert response.headers["retry-after"] == str(StoreUnavailable.retry_after_seconds)
    assert response.json()["error"]["message"] == (
        f"{store} cannot be written ({os.strerror(code)}): nothing has changed; free some disk "
        "space, or check its permissions"
    )


@pytest.mark.parametrize(("module", "call", "code"), FAILING_CALLS)
async def test_an_adapter(
    served: Served, monkeypatch: pytest.MonkeyPatch, module: Any, call: str, code: int
) -> None:
    live = (await _put_adapter(served, seed=0)).json()["live"]
    with monkeypatch.context() as patch:
        patch.setattr(module, call, _failing(code))
        _assert_refused(await _put_adapter(served, seed=1), "the adapter store", code)
    assert (await served.get("/adapters/mine")).json()["live"] == live
    assert (await served.generate(adapter="mine")).json()["adapter"]["version"] == live


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
async def test_a_template(served: Served, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    live = (await _put_template(served, "Mood?")).json()["live"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _failing(code))
        _assert_refused(await _put_template(served, "Tone?"), "the template store", code)
    assert (await served.get("/icl/templates/mine")).json()["live"] == live


async def test_another_failure_of_the_system_is_a_defect(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", _failing(errno.EBADF))
    assert error_of(await _put_template(served, "Mood?")) == (500, "internal_error", None)
