"""When the engine's processes are forked; tests/server/test_generate.py sees that they are."""

import multiprocessing
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from app.engine.vllm import fork_server
from app.engine.vllm.fork_server import start_fork_server
from app.settings import Settings


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was started; the start method is as before afterwards."""
    started: list[str] = []
    before = multiprocessing.get_start_method(allow_none=True)
    monkeypatch.setattr(forkserver, "ensure_running", lambda: started.append("server"))
    monkeypatch.setattr(fork_server, "prepare_cpu_environment", lambda *, eager: None)
    yield started
    multiprocessing.set_start_method(before, force=True)


def test_it_is_the_rule(started: list[str]) -> None:
    start_fork_server(Settings())
    assert started
    assert multiprocessing.get_start_method() == "forkserver"


@pytest.mark.parametrize("argument", ["enforce_eager=false", "--enforce-eager=true"])
def test_not_where_the_engine_may_compile(started: list[str], argument: str) -> None:
    start_fork_server(Settings(engine_arg=(argument,)))
    assert not started


def test_not_without_the_plugin(started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "")
    start_fork_server(Settings())
    assert not started


def test_not_where_vllm_is_built_for_gpus(
    started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(fork_server, "version", version)
    start_fork_server(Settings())
    assert not started


def test_vllm_forks_from_no_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once this fails, see whether vLLM's own can replace app/engine/plugin/forking.py."""
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "forkserver")
    with pytest.raises(ValueError, match="forkserver"):
        _ = _envs_of_vllm().VLLM_WORKER_MULTIPROC_METHOD


def _envs_of_vllm() -> Any:
    """The module `vllm.envs` by itself: with its package, all of vLLM would be imported."""
    package = find_spec("vllm")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0], "envs.py")
    spec = spec_from_file_location("envs", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
