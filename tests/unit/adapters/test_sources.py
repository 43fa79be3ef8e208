"""Only permitted folders are read, and the hub's failures each get a sentence.

There is no network here, but a hub of two files on the loopback address.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from app.adapters.roots import is_below
from app.adapters.sources import HubRepository, LocalFolder, fetch_hub, resolve_source
from app.errors import AdapterError, AdapterRejected, AdapterTooLarge, InvalidRequest
from tests.threaded import in_thread


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    roots = (tmp_path / "adapters", tmp_path / "more")
    for root in roots:
        (root / "team").mkdir(parents=True)
    (roots[1] / "team" / "summary").mkdir()
    (tmp_path / "outside").mkdir()
    return roots


def _refusal(roots: tuple[Path, ...], source: str, revision: str | None = None) -> str:
    with pytest.raises(AdapterRejected) as raised:
        resolve_source(source, revision, roots)
    assert raised.value.param == "source"
    return raised.value.message


def test_a_path_below_a_root(roots: tuple[Path, Path]) -> None:
    folder = roots[1] / "team" / "summary"
    for source in (str(folder), "team/summary", "./team//summary/", "team/x/../summary"):
        if "x" in source:
            (roots[1] / "team" / "x").mkdir()
        assert resolve_source(source, None, roots) == LocalFolder(folder)


def test_relative_roots(roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(roots[1].parent)
    found = resolve_source("team/summary", None, (Path("adapters"), Path("more")))
    assert found == LocalFolder(roots[1] / "team" / "summary")


def test_the_first_root_that_has_it(roots: tuple[Path, Path]) -> None:
    assert resolve_source("team", None, roots) == LocalFolder(roots[0] / "team")


def test_a_link_is_judged_by_where_it_leads(roots: tuple[Path, Path], tmp_path: Path) -> None:
    (roots[0] / "inside").symlink_to(roots[1] / "team" / "summary")
    (roots[0] / "outside").symlink_to(tmp_path / "outside")
    (roots[0] / "team" / "x").symlink_to(tmp_path / "outside")
    found = resolve_source("inside", None, roots)
    assert found == LocalFolder(roots[1] / "team" / "summary")
    _refusal(roots, "outside")
    # Not the hub's repository of this name, either.
    _refusal(roots, "team/x")


@pytest.mark.parametrize(
    "source", ["../outside", "team/../../outside", "..", ".", "~", "~/x", "/etc", "/", "x\0y"]
)
def test_nothing_outside(roots: tuple[Path, Path], source: str) -> None:
    _refusal(roots, source)


def test_there_or_not_the_answer_is_the_same(roots: tuple[Path, Path], tmp_path: Path) -> None:
    there, not_there = str(tmp_path / "outside"), str(tmp_path / "nowhere")
    message = _refusal(roots, there)
    assert message == (
        f"{there} is neither a folder below --adapter-dir or an --adapter-root nor a hub id "
        "(OWNER/NAME): add the files themselves, or start the server with its --adapter-root"
    )
    assert _refusal(roots, not_there) == message.replace(there, not_there)


@pytest.mark.parametrize("source", ["", " ", "name", "a/b/c", "a/../b", "https://hf.co/a/b", "é/b"])
def test_neither_a_folder_nor_a_hub_id(roots: tuple[Path, Path], source: str) -> None:
    _refusal(roots, source)


def test_a_name_that_is_too_long(roots: tuple[Path, Path]) -> None:
    _refusal(roots, "x" * 10_000)


def test_a_hub_id(roots: tuple[Path, Path]) -> None:
    assert resolve_source("org/name-1.0", None, roots) == HubRepository("org/name-1.0")
    assert resolve_source("org/name", "v2", roots) == HubRepository("org/name", "v2")


def test_a_folder_has_no_revision(roots: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        resolve_source("team", "main", roots)
    assert raised.value.param == "revision"


def test_a_root_is_not_below_itself(tmp_path: Path) -> None:
    assert not is_below(tmp_path, [tmp_path])
    assert is_below(tmp_path / "a", [tmp_path])
    assert not is_below(tmp_path.with_name(f"{tmp_path.name}-more"), [tmp_path])


Hub = Callable[[object], list[dict[str, Any]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Answers with these files and sizes, or with an error. The downloads are recorded."""

    def answer(what: object) -> list[dict[str, Any]]:
        downloads: list[dict[str, Any]] = []

        def model_info(repo_id: str, **options: Any) -> object:
            assert options["files_metadata"] is True
            if isinstance(what, Exception):
                raise what
            assert isinstance(what, dict)
            siblings = [SimpleNamespace(rfilename=name, size=what[name]) for name in what]
            return SimpleNamespace(sha="0123abcd", siblings=siblings)

        def snapshot_download(repo_id: str, **options: Any) -> str:
            downloads.append({"repo_id": repo_id, **options})
            return str(options["local_dir"])

        monkeypatch.setattr(huggingface_hub, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return downloads

    return answer


def _hub_error(kind: type[Exception]) -> Exception:
    response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
    return kind("", response=response)  # type: ignore[call-arg]


def _hub_refusal(revision: str | None = None) -> AdapterError:
    with pytest.raises(AdapterRejected) as raised:
        fetch_hub(HubRepository("org/name", revision), Path("staged"), 1000)
    return raised.value


def test_only_two_files_of_one_commit_are_fetched(hub: Hub) -> None:
    downloads = hub({"adapter_config.json": 10, "adapter_model.safetensors": 20, "x.bin": 9999})
    source = fetch_hub(HubRepository("org/name", "main"), Path("staged"), 1000)
    assert source == "org/name@0123abcd"
    assert downloads == [
        {
            "repo_id": "org/name",
            "revision": "0123abcd",
            "allow_patterns": ["adapter_config.json", "adapter_model.safetensors"],
            "local_dir": Path("staged"),
        }
    ]


def test_too_large_to_fetch(hub: Hub) -> None:
    downloads = hub({"adapter_config.json": 10, "adapter_model.safetensors": 2000})
    refusal = _hub_refusal()
    assert isinstance(refusal, AdapterTooLarge)
    assert refusal.message == (
        "the files of org/name have 2,010 bytes and the limit is 1,000: raise --max-adapter-bytes"
    )
    assert downloads == []


def test_not_an_adapter_on_the_hub(hub: Hub) -> None:
    hub({"config.json": 10, "model.safetensors": 20})
    assert _hub_refusal().message == (
        "the hub's org/name has no adapter_config.json and no adapter_model.safetensors: it is not "
        "a PEFT adapter"
    )


def test_a_pickle_on_the_hub(hub: Hub) -> None:
    hub({"adapter_config.json": 10, "adapter_model.bin": 20})
    assert _hub_refusal().message.startswith(
        "the hub's org/name has no adapter_model.safetensors: adapter_model.bin is a pickle, which "
        "can run any code, and was not read: save the adapter with safe_serialization=True, or "
        "convert it"
    )


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (_hub_error(RepositoryNotFoundError), "nor a repository on the hub: check source"),
        (_hub_error(GatedRepoError), "is gated: accept its terms there, and set HF_TOKEN"),
        (_hub_error(RevisionNotFoundError), "the hub's org/name has no revision v9: check it"),
        (HFValidationError(), "org/name is not a hub id: give it as OWNER/NAME"),
        (OfflineModeIsEnabled(), "the hub cannot be reached"),
        (httpx.ConnectError("no route"), "the hub cannot be reached"),
        (httpx.ReadTimeout("slow"), "the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, error: Exception, sentence: str) -> None:
    hub(error)
    refusal = _hub_refusal("v9")
    assert sentence in refusal.message
    assert refusal.param == ("revision" if "revision" in sentence else "source")


COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights", "x.bin": b"no"}
FETCH = """
import sys
from pathlib import Path
from app.adapters.sources import HubRepository, fetch_hub
from app.errors import AdapterRejected
try:
    print(fetch_hub(HubRepository("org/name"), Path(sys.argv[1]), 1000))
except AdapterRejected as error:
    print(error.message)
"""


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as its library asks of for a public repository."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
        if path == f"/api/models/org/name/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": file, "size": len(HUB_FILES[file]), "oid": file}
                for file in HUB_FILES
            ]
            self._send(json.dumps(tree).encode(), "application/json")
        elif path == "/api/models/org/name":
            siblings = [{"rfilename": file, "size": len(HUB_FILES[file])} for file in HUB_FILES]
            info = {"id": "org/name", "sha": COMMIT, "siblings": siblings, "tags": []}
            self._send(json.dumps(info).encode(), "application/json")
        elif name in HUB_FILES:
            self._send(HUB_FILES[name], "application/octet-stream")
        else:
            self.send_error(404)

    def _send(self, body: bytes, media_type: str) -> None:
        self.send_response(200)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-repo-commit", COMMIT)
        self.send_header("etag", f'"{hash(body)}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub_url() -> Iterator[str]:
    with in_thread(ThreadingHTTPServer(("127.0.0.1", 0), _Hub)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


def _fetch(url: str, into: Path) -> str:
    """What a process says whose hub is at `url`: the hub's library reads it when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", FETCH, str(into)],
        env=os.environ | {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_real_files_are_fetched(hub_url: str, tmp_path: Path) -> None:
    assert _fetch(hub_url, tmp_path) == f"org/name@{COMMIT}"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_bytes() == HUB_FILES[name]
    assert not (tmp_path / "x.bin").exists()


def test_no_hub_at_all(tmp_path: Path) -> None:
    # Nothing listens there.
    assert "the hub cannot be reached" in _fetch("http://127.0.0.1:9", tmp_path)
