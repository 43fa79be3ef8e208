"""The examples of docs/client.md run, on a fake engine."""

import re
from pathlib import Path
from typing import Any

import pytest

from softserve.client import Client
from tests.api.test_client import TEMPLATE, save_lora
from tests.fake_engine import FakeEngine
from tests.unit.cli.serving import served

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
URL = "http://127.0.0.1:8000"


def test_every_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trained/my-task").mkdir(parents=True)
    save_lora(Path("trained/my-task"))
    here: dict[str, Any] = {}
    with served(tmp_path, FakeEngine()) as url:
        with Client(url) as client:
            client.templates.add("sentiment", as_reviews())
        for example in EXAMPLES:
            assert URL in example
            exec(example.replace(URL, url), here)  # noqa: S102 (this project's own page)
    shown = capsys.readouterr().out
    assert "[user]Tell me the capital of France.[assistant]"[:20] in shown
    assert "['The sea is', 'The city is']" in shown
    assert "of 1 versions" in shown
    assert "Once upon a time\n17 tokens: stop" in shown
    assert "adapter - no adapter is called 'no-such-task'" in shown


def as_reviews() -> dict[str, Any]:
    """A template with the name of an input that the page uses."""
    renamed = {
        name: value.replace("text", "review")
        for name, value in TEMPLATE.items()
        if isinstance(value, str)
    }
    return {
        **TEMPLATE,
        **renamed,
        "input_variables": ["review"],
        "examples": [{"review": "a", "output": "good"}],
    }
