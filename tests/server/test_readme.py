"""The Python examples of the README, as somebody would run them."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.server.process import ServerProcess
from tests.server.requests import add_adapter

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
ADAPTERS = ("support-intent-lora", "dialogue-summary-lora")


@pytest.mark.parametrize(
    ("library", "printed"),
    [
        ("softserve.client", "The capital of France is Paris.\n"),
        ("openai", "The capital of France is Paris.\n billing\n"),
    ],
)
def test_an_example(
    server: ServerProcess, client: httpx.Client, library: str, printed: str
) -> None:
    for name in ADAPTERS:
        add_adapter(client, name, ROOT / "adapters" / name)
    (example,) = (each for each in EXAMPLES if f"from {library} import" in each)

    code, num_replaced = re.subn(r"http://(localhost|127\.0\.0\.1):8000", server.url, example)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    for name in ADAPTERS:
        client.delete(f"/adapters/{name}").raise_for_status()
    assert num_replaced == 1
    assert done.stdout.startswith(printed)
