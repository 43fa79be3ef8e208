"""What vLLM reads at import, set before."""

import os
from pathlib import Path

import pytest

from app.engine.model.precision import Device
from app.engine.vllm import environment
from app.engine.vllm.engine import engine_arguments
from app.engine.vllm.environment import loads_plugin, prepare_cpu_environment, prepare_environment
from app.settings import Settings


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment of the test's own in place of the process's."""
    variables: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", variables)
    return variables


def test_defaults(variables: dict[str, str], tmp_path: Path) -> None:
    prepare_environment(Settings(cache_dir=tmp_path))
    assert variables["VLLM_NO_USAGE_STATS"] == "1"
    assert variables["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"
    assert variables["VLLM_CACHE_ROOT"] == str(tmp_path / "vllm")
    assert variables["VLLM_LOGGING_LEVEL"] == "ERROR"


@pytest.mark.parametrize(
    ("allowed", "loads"),
    [(None, True), ("", False), ("other", False), ("other,softserve", True)],
)
def test_whether_the_plugin_is_loaded(
    variables: dict[str, str], allowed: str | None, loads: bool, tmp_path: Path
) -> None:
    if allowed is not None:
        variables["VLLM_PLUGINS"] = allowed
    assert loads_plugin() is loads
    (tmp_path / "config.json").write_text("{}")
    device = Device(is_cpu=True, has_bf16=False, has_int8=True)
    assert ("enable_lora" in engine_arguments(tmp_path, Settings(), device)) is loads


def test_debugging_shows_the_engines_log(variables: dict[str, str]) -> None:
    prepare_environment(Settings(log_level="debug"))
    assert variables["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_what_the_operator_set_is_kept(variables: dict[str, str]) -> None:
    variables |= {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}
    prepare_environment(Settings())
    assert variables["VLLM_LOGGING_LEVEL"] == "INFO"
    assert variables["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "1"


@pytest.mark.parametrize(
    ("tcmalloc", "libgomp", "preloaded", "expected"),
    [
        (None, None, None, None),
        (None, None, "other.so", "other.so"),
        ("libtcmalloc.so", None, None, "libtcmalloc.so"),
        ("libtcmalloc.so", "libgomp.so", "other.so", "libtcmalloc.so:libgomp.so:other.so"),
        ("libtcmalloc.so", "libgomp.so", "my/libtcmalloc.so", "libgomp.so:my/libtcmalloc.so"),
        ("libtcmalloc.so", "libgomp.so", "my/libgomp.so", "libtcmalloc.so:my/libgomp.so"),
    ],
)
def test_libraries_are_preloaded_where_installed(
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tcmalloc: str | None,
    libgomp: str | None,
    preloaded: str | None,
    expected: str | None,
) -> None:
    monkeypatch.setattr(environment, "_find_tcmalloc", lambda: tcmalloc)
    monkeypatch.setattr(environment, "_find_libgomp", lambda: libgomp)
    if preloaded is not None:
        variables["LD_PRELOAD"] = preloaded
    prepare_cpu_environment(eager=False)
    assert variables.get("LD_PRELOAD") == expected


@pytest.mark.parametrize("eager", [True, False])
def test_eager_compiles_nothing(variables: dict[str, str], eager: bool) -> None:
    prepare_cpu_environment(eager=eager)
    assert variables.get("TORCH_COMPILE_DISABLE") == ("1" if eager else None)


def test_torch_brings_the_libgomp_that_is_preloaded(variables: dict[str, str]) -> None:
    prepare_cpu_environment(eager=True)
    found = [Path(each) for each in variables["LD_PRELOAD"].split(":") if "libgomp" in each]
    assert [each.is_file() for each in found] == [True]
