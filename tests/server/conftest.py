"""One server process for the whole session; tests that end a server come last, with their own."""

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.peft_reference import PeftReference
from tests.server.process import ServerProcess, running
from tests.server.requests import add_adapter
from tests.server.tiny_models import make_llama

SHARED_ARGUMENTS = (
    *("--max-sequences-in-flight", "64"),
    *("--drain-timeout-seconds", "15"),
    *("--engine-arg", "block-size=64"),
    *("--max-loaded-adapters", "4"),
    *("--max-loras", "4"),
    *("--max-adapter-bytes", "33554432"),
    *("--tool-parser", "hermes"),
)
SHIPPED_ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
LAST_MODULE = "test_lifecycle"


def pytest_configure() -> None:
    # A terminated test run tears its fixtures down as an interrupted one does: no server stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LAST_MODULE in item.nodeid)


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with running(*SHARED_ARGUMENTS) as process:
        yield process.wait_until_ready()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose servers start and answer fast: for what does not depend on its words."""
    return make_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def peft_reference(tmp_path_factory: pytest.TempPathFactory) -> PeftReference:
    return PeftReference(tmp_path_factory.mktemp("peft"))


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
async def async_client(server: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with server.async_client() as client:
        yield client


@pytest.fixture
def intent_adapters(client: httpx.Client) -> Iterator[list[dict[str, str]]]:
    """The LoRA and the soft prompt that ship, each as a request asks for it."""
    chosen = [{"adapter": "support-intent-lora"}, {"soft_prompt": "support-intent-prompt"}]
    names = [name for each in chosen for name in each.values()]
    for name in names:
        add_adapter(client, name, SHIPPED_ADAPTERS / name)
    yield chosen
    for name in names:
        client.delete(f"/adapters/{name}")
