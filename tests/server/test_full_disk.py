"""The disk of the store is full, really: a file system of a few MiB in memory.

So is all that the server may write, but for the volumes of a container: the chart in
deploy/kubernetes gives it no more. A user mounts these in a mount namespace of his own; where no
user may have one, as in a container by Docker's default, these tests are skipped, and
tests/api/test_disk.py has what remains.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.adapter_files import write_lora
from tests.server.process import ServerProcess, running
from tests.server.requests import add_adapter, generate, put_adapter
from tests.server.tiny_models import LLAMA_MODULES, SMALL

OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")
READ_ONLY_ROOT = "mount -o remount,bind,ro /"
NUM_BYTES = 4 << 20
# As the chart sets them where the cores of a node are shared.
THREADS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(
    subprocess.run(
        [*OWN_MOUNTS, "sh", "-c", f"mount -t tmpfs none /tmp && {READ_ONLY_ROOT}"],
        capture_output=True,
        check=False,
    ).returncode
    != 0,
    reason="nobody may mount a file system here, not even in a namespace of his own",
)


def on_small_disk(store: Path, options: str) -> tuple[str, ...]:
    """What begins a command whose `store` is a file system of its own."""
    store.mkdir()
    mount = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
    return (*OWN_MOUNTS, "sh", "-c", mount, str(store))


@pytest.fixture(scope="module")
def contained(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server that can write to its volumes alone: the store is of `NUM_BYTES`."""
    folder = tmp_path_factory.mktemp("volumes")
    store, temporary = folder / "store", folder / "temporary"
    temporary.mkdir()
    store.mkdir()
    mounts = f"mount --bind {folder} {folder} && mount -t tmpfs -o size={NUM_BYTES} none {store}"
    prefix = (*OWN_MOUNTS, "sh", "-c", f'{mounts} && {READ_ONLY_ROOT} && exec "$@"', "sh")
    flags = (*SMALL, "--model", str(tiny_model), "--cache-dir", str(folder / "cache"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (THREADS | dict.fromkeys(("HOME", "TMPDIR"), str(temporary))).items():
            patch.setenv(name, value)
        with running(*flags, folder=folder, prefix=prefix) as server:
            yield server.wait_until_ready()


@contextmanager
def full(store: Path) -> Iterator[None]:
    """No byte is free."""
    filler = store / "filler"
    try:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        assert os.statvfs(store).f_bavail == 0
        yield
    finally:
        filler.unlink()


def test_a_start_on_a_full_disk_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """Not even an empty file can be made."""
    store = tmp_path / "store"
    with running(folder=tmp_path, prefix=on_small_disk(store, "nr_inodes=1")) as server:
        code = server.wait_for_exit()

    assert code == 1
    assert "Traceback" not in "".join(server.log)
    assert json.loads(server.log[-1])["event"] == (
        f"the adapter store {store} cannot be written (No space left on device): free some disk "
        "space, check its permissions, or choose another with --adapter-store"
    )


def test_an_upload_to_a_full_disk_changes_nothing(contained: ServerProcess, tmp_path: Path) -> None:
    old, new = (
        write_lora(tmp_path / f"lora-{seed}", LLAMA_MODULES, seed=seed, scale=1.0)
        for seed in range(2)
    )
    question: dict[str, Any] = {"prompt": "Once upon a time", "max_new_tokens": 8}
    with contained.client() as client:
        store = contained.own_view(contained.adapter_store)
        add_adapter(client, "mine", old)
        add_adapter(client, "spare", old)
        before = generate(client, **question, adapter="mine")
        shown = client.get("/adapters").json()
        with full(store):
            refused = [put_adapter(client, name, new) for name in ("mine", "other")]
            during = client.get("/adapters").json()
            answered = generate(client, **question, adapter="mine")
            removed = client.delete("/adapters/spare")
        left = list((store / "staging").iterdir())
        replaced = add_adapter(client, "mine", new)
        after = generate(client, **question, adapter="mine")

    for response in refused:
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "store_unavailable"
        assert response.headers["retry-after"]
    assert live_versions(during) == live_versions(shown)
    assert answered["completions"] == before["completions"] != after["completions"]
    assert removed.status_code == 204, "removing is how space is made"
    assert left == []
    assert after["adapter"]["version"] == replaced


def live_versions(shown: dict[str, Any]) -> dict[str, str]:
    return {adapter["name"]: adapter["live"] for adapter in shown["adapters"]}


def test_nothing_but_its_volumes_can_be_written(contained: ServerProcess) -> None:
    """Or the tests here would say nothing of a container."""
    mounts = Path(f"/proc/{contained.process.pid}/mounts").read_text().splitlines()
    (root,) = (mount.split() for mount in mounts if mount.split()[1] == "/")
    assert "ro" in root[3].split(",")


def test_threads_are_as_many_as_is_said_and_bound_to_no_core(contained: ServerProcess) -> None:
    worker = Path(f"/proc/{contained.worker_process()}")
    variables = worker.joinpath("environ").read_text().split("\0")
    assert "OMP_NUM_THREADS=1" in variables
    assert [each for each in variables if each.startswith("GOMP_CPU_AFFINITY")] == []
    threads = [int(thread.name) for thread in worker.joinpath("task").iterdir()]
    assert {frozenset(os.sched_getaffinity(each)) for each in threads} == {
        frozenset(os.sched_getaffinity(0))
    }
