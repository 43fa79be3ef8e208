"""The buckets of distances in T5's attention are those of transformers."""

import json
import subprocess
import sys


def test_every_distance_has_the_bucket_that_transformers_gives_it() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.unit.engine.relative_bias_in_vllm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    compared = json.loads(finished.stdout.splitlines()[-1])

    assert len(compared) == 12
    assert [case for *case, agrees in compared if not agrees] == []
