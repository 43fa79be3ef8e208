"""`softserve adapter check` as its author runs it: the command and vLLM's own classes, no server.

With --against-peft the real engine runs, and so do transformers and PEFT.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.adapters.validation import digest_of
from app.checking.comparison import difference
from app.engine.model.default import NAME, default_model, progress_on_stderr
from app.engine.reference import Completed, follow
from app.errors import ReferenceFailed
from app.settings import Settings
from softserve.schema.checks import AgainstPeft, CheckReport, ComparedPrompt
from tests.adapter_files import write_multitask
from tests.bad_adapters import BAD_ADAPTERS, BadAdapter
from tests.server.peft_reference import HIDDEN_SIZE, SMOLLM2_MODULES, PeftReference
from tests.server.process import members_of, wait_until
from tests.server.test_odd_models import save_lora
from tests.server.tiny_models import make_model

# PyTorch's own, when transformers imports a part of it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

COMMAND = [str(Path(sys.executable).with_name("softserve")), "adapter", "check"]
SHIPPED = Path(__file__).resolve().parents[2] / "adapters"
# Some before vLLM is asked about the model, and some after.
BAD = ("tar: ..", "pickled weights", "r: too high", "NaN")
LONG_ENOUGH_SECONDS = 60.0


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The command in a group of its own, and where it puts temporary files.

    What it leaves, in processes or on disk, is an error.
    """
    with tempfile.TemporaryDirectory() as temporary:
        process = subprocess.Popen(
            [*COMMAND, str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"TMPDIR": temporary},
            text=True,
            start_new_session=True,
        )
        try:
            yield process, Path(temporary)
            wait_until(lambda: members_of(process.pid) == [], LONG_ENOUGH_SECONDS)
            assert list(Path(temporary).glob("softserve-*")) == []
        finally:
            for pid in members_of(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.communicate()


def check(folder: Path, *arguments: str) -> CheckReport:
    """The report, after the exit code that goes with it."""
    with started(folder, "--json", *arguments) as (process, _):
        stdout, stderr = process.communicate()
    assert stdout.startswith("{"), stderr
    report = CheckReport.model_validate_json(stdout)
    assert process.returncode == report.exit_code, stderr
    return report


def compared(report: CheckReport) -> AgainstPeft:
    assert report.against_peft is not None, report.message
    return report.against_peft


def changes_more_than(prompt: ComparedPrompt, log_probability: float) -> bool:
    """Whether the adapter does. It need not change the most likely token at any position."""
    return prompt.largest_change is not None and prompt.largest_change > log_probability


def test_an_adapter_that_ships() -> None:
    folder = SHIPPED / "support-intent-lora"

    report = check(folder)

    assert (report.verdict, report.model, report.message) == ("taken", NAME, None)
    assert report.adapter is not None
    assert report.adapter.version == digest_of(folder)
    assert (report.adapter.rank, report.adapter.target_modules) == (8, ["q_proj", "v_proj"])


@pytest.mark.parametrize(
    "bad", [bad for bad in BAD_ADAPTERS if bad.id in BAD], ids=lambda bad: bad.id
)
def test_a_bad_adapter_is_refused(tmp_path: Path, bad: BadAdapter) -> None:
    """As a server refuses it, in the same words."""
    files = bad.make(HIDDEN_SIZE, SMOLLM2_MODULES)
    for name, content in files:
        (tmp_path / name).write_bytes(content)

    report = check(tmp_path if len(files) > 1 else tmp_path / files[0][0])

    assert report.verdict == "refused"
    assert report.message is not None
    assert bad.sentence in report.message


def test_a_model_that_takes_no_loras(tmp_path: Path) -> None:
    """What a server of it says (test_odd_models.py), said without loading it."""
    experts = {"intermediate_size": 128, "num_key_value_heads": 2, "num_local_experts": 4}
    model = make_model(tmp_path / "model", "mixtral", **experts, sliding_window=None)
    save_lora(lora := tmp_path / "lora", model)

    report = check(lora, "--model", str(model))

    assert report.verdict == "refused"
    assert report.message is not None
    assert report.message.endswith(
        "vLLM runs no LoRA on a mixture of experts (MixtralForCausalLM) on a CPU"
    )


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    report = check(SHIPPED / "support-intent-lora", "--model", str(tmp_path))

    assert report.verdict == "unchecked"
    assert report.message is not None
    assert "has no config.json" in report.message


def test_a_lora_gives_what_peft_gives_and_another_does_not(peft_reference: PeftReference) -> None:
    report = check(peft_reference.path("rank16"), "--against-peft")

    against_peft = compared(report)
    assert (report.verdict, against_peft.equal, against_peft.dtype) == ("taken", True, "float32")
    assert against_peft.warning is None
    assert len(against_peft.prompts) == 4
    for prompt in against_peft.prompts:
        assert (len(prompt.token_ids), prompt.divergence) == (32, None)
        assert changes_more_than(prompt, against_peft.tolerance)
    assert any(prompt.changed_at is not None for prompt in against_peft.prompts)
    # The same texts along another adapter: a difference would be found.
    other = follow(
        default_model(Settings().cache_dir, progress_on_stderr()),
        peft_reference.path("rank8"),
        "float32",
        [Completed(each.prompt_token_ids, each.token_ids) for each in against_peft.prompts],
    )
    found = [
        difference(prompt.token_ids, [each or 0.0 for each in prompt.logprobs], choices)
        for prompt, choices in zip(against_peft.prompts, other.adapted, strict=True)
    ]
    assert not any(each.is_within(against_peft.tolerance) for each in found)
    assert any(each.divergence is not None for each in found)


def test_peft_that_cannot_load_it_is_told(tmp_path: Path) -> None:
    model = default_model(Settings().cache_dir, progress_on_stderr())

    with pytest.raises(ReferenceFailed, match="the reason is above"):
        follow(model, tmp_path, "float32", [])


def test_a_multitask_soft_prompt_gives_what_peft_gives(tmp_path: Path) -> None:
    folder = write_multitask(tmp_path / "multitask", 12, HIDDEN_SIZE, num_tasks=2)

    report = check(folder, "--against-peft", "--prompt", "The sky is", "--prompt", "The sky is")

    first, second = compared(report).prompts
    assert (report.verdict, report.message) == ("taken", None)
    assert (first.task, second.task) == (0, 1)
    assert first.token_ids != second.token_ids
    for prompt in (first, second):
        assert (prompt.prompt, len(prompt.token_ids)) == ("The sky is", 32)
        assert prompt.divergence is None
        assert changes_more_than(prompt, 0.01)


def test_a_terminated_check_leaves_nothing() -> None:
    """Neither a folder nor a process."""
    with started(SHIPPED / "support-intent-lora") as (process, temporary):
        wait_until(lambda: any(temporary.glob("softserve-check-*")), LONG_ENOUGH_SECONDS)
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=LONG_ENOUGH_SECONDS)

    assert (process.returncode, stdout) == (130, "")
