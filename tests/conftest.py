"""Which tests run beside which, where two processes run them (`pytest -n 2`).

Those that ask a server come one after the other. Beside them, in turn as well, are those that
start an engine of their own, mostly of a tiny model: two at once fit into the memory. Of the
others, those of a file stay together with its fixtures.
"""

import os
import signal

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ON_AN_ENGINE_OF_THEIR_OWN = (
    "tests/server/test_adapter_check.py",
    "tests/server/test_architectures.py",
    "tests/server/test_bart_server.py",
    "tests/server/test_encoder_decoder.py",
    "tests/server/test_fused_projections.py",
    "tests/server/test_odd_models.py",
    "tests/server/test_precision.py",
    "tests/server/test_seq2seq_clients.py",
    "tests/server/test_seq2seq_server.py",
    "tests/server/test_start.py",
)
ON_A_SERVER = ("tests/browser/", "tests/loadtest/test_on_softserve.py", "tests/server/")


def pytest_configure() -> None:
    """What holds for all that the tests start."""
    # On two cores two processes run tests: a team of threads mostly waits for one that has no core.
    # A server's engine counts its threads by itself.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A job in a shell's background ignores Ctrl-C, and so would all that they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class ServersInTurn(LoadScopeScheduling):  # type: ignore[misc]
    """A scope is what one process runs by itself; the largest is begun first."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(ON_AN_ENGINE_OF_THEIR_OWN):
            return "engines"
        return "servers" if nodeid.startswith(ON_A_SERVER) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ServersInTurn:
    return ServersInTurn(config, log)
