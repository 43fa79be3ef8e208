"""Which tests run beside which, where two processes run them (`pytest -n 2`).

Those that start an engine come one after the other: two engines at once would share the cores, and
take the memory twice. Of the others, those of a file stay together with its fixtures.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

WITH_AN_ENGINE = (
    "tests/browser/",
    "tests/loadtest/test_on_softserve.py",
    "tests/server/",
    "tests/unit/engine/",
)


class EnginesInTurn(LoadScopeScheduling):  # type: ignore[misc]
    """A scope is what one process runs by itself; the largest is begun first."""

    def _split_scope(self, nodeid: str) -> str:
        return "engine" if nodeid.startswith(WITH_AN_ENGINE) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> EnginesInTurn:
    return EnginesInTurn(config, log)
