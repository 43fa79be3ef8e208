"""Who may import whom. Imports inside functions and for type checking count as well."""

import ast
from pathlib import Path

import pytest

import app

ROOT = Path(app.__file__).parent
# From the foundation up: a module imports from its own row or from rows above it in this list.
LAYERS = [
    {"app", "app.errors", "app.threads", "app.merging"},
    {"app.settings", "app.generation", "app.controls"},
    {"app.logs", "app.metrics", "app.admission"},
    {"app.engine", "app.inspection", "app.evaluation"},
    {"app.adapters", "app.quantization"},
    {"app.icl"},
    {"app.service", "app.lifecycle", "app.in_context"},
    {"app.http"},
    {"app.application", "app.client"},
    {"app.server", "app.tables", "app.adapter_tables", "app.terminal", "app.evaluation_tables"},
    {"app.cli", "app.adapter_cli", "app.icl_cli", "app.evaluate_cli"},
]
# Library: the only places that may import it.
LIBRARIES = {
    "fastapi": {"app.http", "app.application"},
    "starlette": {"app.http"},
    "uvicorn": {"app.server"},
    "vllm": {"app.engine"},
    "torch": {"app.engine", "app.adapters.validation", "app.quantization"},
    "transformers": {"app.engine", "app.quantization"},
    "compressed_tensors": {"app.quantization"},
    "prometheus_client": {"app.metrics", "app.http"},
    "typer": {"app.cli", "app.adapter_cli", "app.icl_cli", "app.evaluate_cli", "app.terminal"},
    "httpx": {"app.client"},
    "safetensors": {"app.engine", "app.adapters.validation", "app.quantization"},
    "huggingface_hub": {"app.engine", "app.adapters.sources"},
    "watchfiles": {"app.adapters.watcher"},
    "jinja2": {"app.icl.rendering", "app.engine.vllm", "app.evaluation.report"},
    "yaml": {"app.icl.source"},
    "bm25s": {"app.icl.selection"},
}
# Within one row, what must stay apart.
FORBIDDEN = [
    ("app.errors", "app"),
    ("app.settings", "app.errors"),
    ("app.settings", "app.generation"),
    ("app.admission", "app.metrics"),
    ("app.metrics", "app.admission"),
    ("app.inspection", "app.engine"),
    ("app.engine", "app.inspection"),
    ("app.adapters", "app.inspection"),
    ("app.adapters", "app.admission"),
    ("app.adapters", "app.metrics"),
    ("app.evaluation", "app.engine"),
    ("app.evaluation", "app.inspection"),
    ("app.engine", "app.evaluation"),
    ("app.inspection", "app.evaluation"),
    ("app.adapters", "app.evaluation"),
    ("app.icl", "app.evaluation"),
    ("app.adapters", "app.quantization"),
    ("app.quantization", "app.adapters"),
    ("app.engine", "app.admission"),
    ("app.engine", "app.metrics"),
    ("app.lifecycle", "app.service"),
    ("app.lifecycle", "app.in_context"),
    ("app.in_context", "app.lifecycle"),
    ("app.service", "app.in_context"),
    ("app.icl", "app.admission"),
    ("app.icl", "app.metrics"),
    ("app.service", "app.lifecycle"),
    ("app.http", "app.lifecycle"),
]


def _name(path: Path) -> str:
    parts = ["app", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(tree: ast.Module) -> set[str]:
    """Every module that the tree imports, wherever the statement stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            found.update(_imported(node.module, alias.name) for alias in node.names)
    return found


def _imported(module: str, name: str) -> str:
    """`from app import x` imports app.x where that is a module, else app."""
    return f"{module}.{name}" if f"{module}.{name}" in MODULES else module


# Parsed before any test runs: in CPython 3.11 a task that is collected meanwhile can break it.
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
IMPORTS = {name: imports_of(tree) for name, tree in TREES.items()}


def _is_in(module: str, place: str) -> bool:
    return module == place or (place != "app" and module.startswith(f"{place}."))


def _row(module: str) -> int:
    rows = [i for i, row in enumerate(LAYERS) if any(_is_in(module, place) for place in row)]
    assert len(rows) == 1, f"{module} has no row in LAYERS: say where it belongs"
    return rows[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    imported = {name for name in IMPORTS[module] if name in MODULES}
    assert {name for name in imported if _row(name) > _row(module)} == set()


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_place(module: str) -> None:
    tops = {name.partition(".")[0] for name in IMPORTS[module]}
    strays = {
        library
        for library in tops & LIBRARIES.keys()
        if not any(_is_in(module, place) for place in LIBRARIES[library])
    }
    assert strays == set()


@pytest.mark.parametrize(("importer", "imported"), FORBIDDEN)
def test_what_stays_apart(importer: str, imported: str) -> None:
    found = {
        name
        for module in MODULES
        if _is_in(module, importer)
        for name in IMPORTS[module]
        if name in MODULES and _is_in(name, imported)
    }
    assert found == set()


def test_vllm_is_imported_inside_functions_only() -> None:
    """It reads its environment when it is imported, so the environment must be set before.

    Its plugin is imported by vLLM itself.
    """
    outside = {module for module in TREES if not _is_in(module, "app.engine.plugin")}
    for module in outside:
        tree = TREES[module]
        at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        imported = imports_of(ast.Module(list(at_import), []))
        assert "vllm" not in {name.partition(".")[0] for name in imported}, module


def test_an_import_inside_a_function_is_found() -> None:
    source = "def f():\n    if True:\n        from vllm.x import y\n    import fastapi as z"
    assert imports_of(ast.parse(source)) == {"vllm.x", "fastapi"}


def test_a_module_imported_from_its_package_is_found() -> None:
    source = "from app.http import routes\nfrom app import __version__"
    assert imports_of(ast.parse(source)) == {"app.http.routes", "app"}


def test_nothing_imports_the_tests() -> None:
    for module, imported in IMPORTS.items():
        assert "tests" not in {name.partition(".")[0] for name in imported}, module
