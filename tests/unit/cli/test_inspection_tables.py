"""What `softserve inspect` prints."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from app.cli.inspection_tables import print_distribution
from softserve.schema.inspection import InspectAnswer


def _token(text: str, token_id: int, share: float, final: float, *kept: bool | None) -> Any:
    return {
        "token_id": token_id,
        "token": text,
        "probability": share,
        "after_temperature": share,
        "kept_by": dict(zip(("min_p", "top_k", "top_p"), kept, strict=True)),
        "final": final,
    }


SAMPLING: dict[str, Any] = {
    "greedy": False,
    "temperature": 0.7,
    "top_k": 2,
    "top_p": 1.0,
    "min_p": 0.1,
    "max_new_tokens": 1,
    "min_new_tokens": 0,
    "n": 1,
    "seed": None,
    "stop": [],
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "ignore_eos": False,
}
ANSWER: dict[str, Any] = {
    "id": "1",
    "model": "echo",
    "prompt_tokens": 3,
    "virtual_tokens": 0,
    "tokens": [
        _token(" blue", 4461, 0.5, 0.625, True, True, True),
        _token("\n", 198, 0.3, 0.375, True, True, True),
        _token(" a very long token indeed", 7, 0.15, 0.0, True, False, None),
        _token("�", 300, 0.05, 0.0, False, None, None),
    ],
    "num_surviving": 2,
    "vocabulary_size": 49152,
    "surviving_mass": 0.8,
    "sampling": SAMPLING,
}


def _printed(answer: dict[str, Any]) -> list[str]:
    console = Console(file=StringIO(), width=80)
    print_distribution(InspectAnswer.model_validate(answer), console)
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_rows() -> None:
    lines = _printed(ANSWER)
    assert lines[0] == "temperature 0.7, top_k 2, min_p 0.1"
    assert lines[2].split() == [
        "token", "id", "model", "temp.", "min_p", "top_k", "top_p", "sampled",
    ]  # fmt: skip
    rows = [line.split() for line in lines[4:8]]
    assert rows[0][:9] == ["'", "blue'", "4461", "0.5000", "0.5000", "✓", "✓", "✓", "0.6250"]
    assert rows[1][:8] == ["'\\n'", "198", "0.3000", "0.3000", "✓", "✓", "✓", "0.3750"]
    assert rows[2][-7:] == ["7", "0.1500", "0.1500", "✓", "✗", "·", "0.0000"]
    assert rows[3] == ["'�'", "300", "0.0500", "0.0500", "✗", "·", "·", "0.0000"]
    assert lines[8:] == [
        "",
        "2 of 49,152 tokens can be sampled; after temperature they hold 80.00% of the",
        "probability.",
    ]
    assert all(len(line) <= 80 for line in lines)


def test_a_bar_is_as_long_as_its_share() -> None:
    lengths = [line.count("█") for line in _printed(ANSWER)[4:8]]
    assert lengths[0] > lengths[1] > 0
    assert abs(lengths[1] - lengths[0] * 0.6) <= 1
    assert lengths[2:] == [0, 0]


@pytest.mark.parametrize(
    ("sampling", "title"),
    [
        ({"greedy": True}, "greedy: the most likely token is taken"),
        (
            {"greedy": False, "temperature": 1.0, "top_k": None, "top_p": 0.9, "min_p": 0.0},
            "temperature 1.0, top_p 0.9",
        ),
        (
            {"greedy": False, "temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0},
            "temperature 1.0",
        ),
    ],
)
def test_the_title_names_the_controls(sampling: dict[str, Any], title: str) -> None:
    assert _printed(ANSWER | {"sampling": SAMPLING | sampling})[0] == title
