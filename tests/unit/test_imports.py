"""What an import drags in. Who may import whom is for import-linter, in pyproject.toml."""

import subprocess
import sys

import pytest


def _loaded_by(module: str) -> set[str]:
    """The top-level modules that are loaded once `module` is."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    told = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    return set(told.stdout.split())


def test_a_client_loads_neither_the_server_nor_numpy() -> None:
    loaded = _loaded_by("softserve.client")

    assert "httpx" in loaded
    assert loaded & {"app", "numpy", "fastapi", "structlog", "transformers", "vllm"} == set()
    assert loaded & {"typer", "yaml", "prometheus_client"} == set()


def test_the_entry_loads_nothing_that_may_be_missing() -> None:
    """It has to say what to install."""
    loaded = _loaded_by("app.cli.entry")

    assert "app" in loaded
    assert loaded & {"typer", "rich", "softserve", "httpx", "pydantic"} == set()


def test_the_help_waits_for_no_command() -> None:
    loaded = _loaded_by("app.cli.main")

    assert "typer" in loaded
    assert loaded & {"softserve", "httpx", "numpy", "pydantic", "pydantic_settings"} == set()


@pytest.mark.parametrize("module", ["app.server", "app.engine.vllm.engine"])
def test_vllm_is_imported_when_the_engine_starts(module: str) -> None:
    """It reads its environment when it is imported, so the environment must be set before."""
    loaded = _loaded_by(module)

    assert "app" in loaded
    assert loaded & {"vllm", "torch"} == set()
