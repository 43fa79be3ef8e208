"""`loadtest.bench` on small servers in the place of softserve and vLLM's; test_bench.py starts it.

    python -m tests.loadtest.bench_on_streaming_servers FOLDER [ARGUMENT_OF_THE_SERVERS ...]

A process of its own: vLLM, whose client it runs, takes long to import, and changes who imports it.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from loadtest.bench import report, run_in_turns
from loadtest.servers import SOFTSERVE, VLLM_SERVE
from loadtest.vllm_client import measure
from loadtest.workload import Workload


def main(folder: Path, *arguments: str) -> None:
    small: dict[str, Any] = {
        "module": "tests.loadtest.streaming_server",
        "arguments": ("--record", str(folder / "requests.jsonl"), *arguments),
        "ready_path": "/health",
    }
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))  # noqa: S106
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    runs = run_in_turns(
        (replace(SOFTSERVE, **small), replace(VLLM_SERVE, **small)),
        Workload(tokenizer.encode, prompt_tokens=(3, 9), new_tokens=(2, 6)),
        partial(measure, model="words", tokenizer=tokenizer),
        clients=(1, 4),
        seconds=1,
        rounds=2,
    )
    report({"model": "words"}, runs, folder / "bench.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
