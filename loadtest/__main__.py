"""`make loadtest`: a load of every kind on a server, and a report.

    make loadtest
    make loadtest ARGS="-u 64 -t 5m --slo ttft=500ms,itl=100ms"
    make loadtest ARGS="--host http://gpu-1:8000 --processes 4 AdapterMixUser"
    make loadtest ARGS="--web"

Without --host a server is started for the load, with --num-loras (8) and --num-soft-prompts (2)
random ones and the templates that ship; its settings are the SOFTSERVE_* variables. --web opens
locust's web interface; without it the load begins at once. All other options are locust's:
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.engine.model.find import find_model
from app.errors import SoftserveError
from app.settings import Settings
from loadtest.servers import HOST, SOFTSERVE, ServerFailed, running
from softserve.client import Client

ROOT = Path(__file__).resolve().parent.parent
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
REPORT = "results/loadtest"
RANK = 8
NUM_VIRTUAL_TOKENS = 20
COMPARED_SHARE = "0.25"
# Unless the command line says otherwise.
DEFAULTS = (
    *("--users", "16", "--spawn-rate", "16", "--run-time", "60s", "--stop-timeout", "60"),
    *("--loglevel", "WARNING", "--report", REPORT),
)


def main() -> int:
    """The exit code of locust: 0, where nothing has failed."""
    own, rest = parse(sys.argv[1:])
    mode = [] if own.web else ["--headless", "--only-summary"]
    # Terminated, it ends its server as it does when it is interrupted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if own.host or own.help:
            where = ["--help"] if own.help else ["--host", own.host]
            return run_locust([*DEFAULTS, *mode, *where, *rest])
        with own_server(own.num_loras, own.num_soft_prompts) as where:
            return run_locust([*DEFAULTS, *mode, *where, *rest])
    except (ServerFailed, SoftserveError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of this command, and what is locust's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-H", "--host")
    parser.add_argument("--web", action="store_true")
    parser.add_argument("--num-loras", type=int, default=8)
    parser.add_argument("--num-soft-prompts", type=int, default=2)
    parser.add_argument("-h", "--help", action="store_true")
    own, rest = parser.parse_known_args(arguments)
    if own.help:
        sys.stdout.write(f"{__doc__}\n")
    return own, rest


def run_locust(arguments: list[str]) -> int:
    """In a process of its own, because gevent replaces the standard library's sockets."""
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *arguments]
    with subprocess.Popen(command) as process:
        # A terminal tells locust, too, which then writes its reports.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        return process.wait()


@contextmanager
def own_server(num_loras: int, num_soft_prompts: int) -> Iterator[list[str]]:
    """A server that is ready, and what locust has to know of it."""
    # Who has a server needs no PyTorch here.
    from loadtest.random_adapters import make_loras, make_soft_prompts

    _, model = find_model(Settings())
    with tempfile.TemporaryDirectory() as own:
        adapters, spare = Path(own, "adapters"), Path(own, "spare")
        adapters.mkdir()
        spare.mkdir()
        say("making adapters")
        *_, one, other = make_loras(model, adapters, num_loras + 2, RANK)
        swap_files = [str(each.rename(spare / each.name)) for each in (one, other)]
        make_soft_prompts(model, adapters, num_soft_prompts, NUM_VIRTUAL_TOKENS)
        places = {
            "SOFTSERVE_ADAPTER_DIR": str(adapters),
            "SOFTSERVE_TEMPLATE_DIR": str(ROOT / "templates"),
        }
        say("starting a server")
        with running(SOFTSERVE, places) as server:
            url = f"http://{HOST}:{server.port}"
            arguments = ["--host", url, "--swap-files", ",".join(swap_files)]
            with Client(url, os.environ.get("SOFTSERVE_API_KEY")) as client:
                precision = client.info().weights.precision
            # Only there is a text the same in any batch.
            yield (
                [*arguments, "--check-texts", COMPARED_SHARE] if precision == "fp32" else arguments
            )


def say(line: str) -> None:
    sys.stderr.write(f"loadtest: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
