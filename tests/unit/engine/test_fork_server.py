"""When the engine's processes are forked; tests/server/test_generate.py sees that they are."""

import multiprocessing
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from app.engine.vllm import fork_server
from app.engine.vllm.fork_server import cores_of_worker, start_fork_server
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


def test_not_where_an_operator_binds_threads(
    started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
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


def test_openmp_is_told_the_cores_before_it_is_loaded(
    started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str | None] = []
    monkeypatch.setattr(fork_server, "cores_of_worker", lambda: [3, 5])
    monkeypatch.setattr(
        forkserver,
        "ensure_running",
        lambda: told.extend(map(os.environ.get, ("GOMP_CPU_AFFINITY", "OMP_NUM_THREADS"))),
    )
    before = dict(os.environ)
    start_fork_server(Settings())
    assert told == ["3 5", "2"]
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("allowed", "cores"), [({0, 1, 2, 3}, [2, 3]), ({0, 1, 3}, [0, 3]), ({1}, [1])]
)
def test_a_core_counts_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, allowed: set[int], cores: list[int]
) -> None:
    """Here CPUs 0 and 2 are threads of one core, and 1 and 3 of another."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: allowed)
    monkeypatch.setattr(fork_server, "SIBLINGS", f"{tmp_path}/{{}}")
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / str(cpu)).write_text(f"{siblings}\n")
    assert cores_of_worker() == cores


def test_a_range_of_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a CPU of which the system says nothing, as on some virtual machines."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr(fork_server, "SIBLINGS", f"{tmp_path}/{{}}")
    for cpu in (0, 1):
        (tmp_path / str(cpu)).write_text("0-1\n")
    assert cores_of_worker() == [1, 2]


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
