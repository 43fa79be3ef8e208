"""Who runs beside whom, where several processes run the tests (`pytest -n 2 --dist loadgroup`).

Those that start an engine come one after the other: two engines at once would share the cores, and
take the memory twice. Of the others, a file stays together with its fixtures.
"""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
WITH_AN_ENGINE = ("browser", "loadtest/test_on_softserve.py", "server", "unit/engine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        needs_engine = any(item.path.is_relative_to(TESTS / part) for part in WITH_AN_ENGINE)
        group = "engine" if needs_engine else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
