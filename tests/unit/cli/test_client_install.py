"""`softserve` alone has the client, `softserve[cli]` what talks to a server; the rest says so."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SENTENCE = re.compile(
    r"softserve: this command needs the server's packages and [\w.]+ is not there: "
    r"pip install 'softserve\[cpu\]' or 'softserve\[cuda\]'\n"
)
# Runs the command line where these modules cannot be imported, as if they were not installed.
RUN_WITHOUT = """
import sys

class NotInstalled:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

absent = set(sys.argv.pop(1).split())
sys.meta_path.insert(0, NotInstalled)
"""
COMMAND_LINE = "from app.cli.entry import main; main()"


def _normal(requirement: str) -> str:
    """The name of the distribution that a requirement asks for."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def _with_what_they_need(requirements: list[str]) -> set[str]:
    """The distributions, and those below them; an extra is not followed."""
    found: set[str] = set()
    remaining = list(requirements)
    while remaining:
        requirement = remaining.pop()
        if "extra ==" in requirement or _normal(requirement) in found:
            continue
        found.add(_normal(requirement))
        try:
            remaining += metadata.requires(_normal(requirement)) or []
        except metadata.PackageNotFoundError:
            # For another platform or Python.
            continue
    return found


def _absent(*extras: str) -> set[str]:
    """Every module of this environment that an installation with these extras does not have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    asked = [*project["dependencies"], *(each for extra in extras for each in optional[extra])]
    present = _with_what_they_need(asked)
    return {
        module
        for module, distributions in metadata.packages_distributions().items()
        if not present & set(map(_normal, distributions)) and module not in {"app", "softserve"}
    }


@pytest.fixture(scope="module")
def absent() -> str:
    """What `softserve[cli]` does not bring."""
    modules = _absent("cli")
    assert {"numpy", "fastapi", "transformers", "pydantic_settings", "structlog"} <= modules
    assert modules & {"httpx", "pydantic", "rich", "typer", "yaml"} == set()
    return " ".join(modules)


@pytest.fixture(scope="module")
def absent_of_the_client() -> str:
    """What `softserve` alone does not bring."""
    modules = _absent()
    assert {"rich", "typer", "yaml", "prometheus_client", "numpy"} <= modules
    assert modules & {"httpx", "pydantic"} == set()
    return " ".join(modules)


def _run(
    absent: str, *arguments: str, program: str = COMMAND_LINE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT + program, absent, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        ["serve"],
        ["serve", "--help"],
        ["quantize", "--out", "/no/such/folder/x"],
        ["evaluate", "--data", "x.jsonl", "--template", "x"],
        ["key", "list", "--keys-file", "x.json"],
    ],
    ids=" ".join,
)
def test_what_needs_the_server_says_what_to_install(absent: str, command: list[str]) -> None:
    done = _run(absent, *command)

    assert (done.returncode, done.stdout) == (1, "")
    assert SENTENCE.fullmatch(done.stderr), done.stderr


def test_a_check_that_cannot_be_made_is_no_refusal(absent: str) -> None:
    done = _run(absent, "adapter", "check", str(ROOT / "adapters/support-intent-lora"))

    assert (done.returncode, done.stdout) == (4, "")
    assert SENTENCE.fullmatch(done.stderr), done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["adapter", "list"],
        ["adapter", "add", "x", str(ROOT / "adapters/support-intent-lora")],
        ["template", "list"],
        ["template", "add", "x", str(ROOT / "templates/sentiment.yaml")],
        ["inspect", "The sky is"],
        ["key", "list"],
        ["key", "create", "x"],
        ["key", "revoke", "x"],
        ["generate", "hello"],
        ["top", "--once"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_what_talks_to_a_server_runs(absent: str, command: list[str]) -> None:
    done = _run(absent, *command, "--url", "http://127.0.0.1:1")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("softserve: no answer from http://127.0.0.1:1 (")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["--help"], ["--version"]], ids=" ".join)
def test_what_needs_nothing_runs(absent: str, command: list[str]) -> None:
    done = _run(absent, *command)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_client_alone(absent_of_the_client: str) -> None:
    program = (
        "from softserve.client import Client, Unreachable\n"
        "try:\n"
        "    Client('http://127.0.0.1:1', retry_seconds=0).generate('hello')\n"
        "except Unreachable as error:\n"
        "    print(error)\n"
    )
    done = _run(absent_of_the_client, program=program)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("no answer from http://127.0.0.1:1 (")


@pytest.mark.parametrize("command", [[], ["--help"], ["generate", "hello"]], ids=" ".join)
def test_the_command_line_says_what_it_needs(absent_of_the_client: str, command: list[str]) -> None:
    done = _run(absent_of_the_client, *command)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "softserve: the command line needs typer, which is not there: pip install "
        "'softserve[cli]', or 'softserve[cpu]' or 'softserve[cuda]' for the server too\n"
    )
