"""What is said of an adapter without a server is what a server says."""

import json
import re
import zipfile
from pathlib import Path

import pytest

from app.adapters.validation import digest_of
from app.checking import admission
from app.checking.admission import admitted
from app.checking.check import check_adapter
from app.engine.vllm.unloaded import UnloadedModel
from app.errors import AdapterRejected, AdapterTooLarge
from app.settings import Settings
from softserve.schema.adapters import CONFIG_FILE
from tests.adapter_files import (
    pack_tar_gz,
    read_files,
    write_lora,
    write_multitask,
    write_soft_prompt,
)
from tests.fake_engine import ARCHITECTURE

SETTINGS = Settings()
UNKNOWN = "which modules vLLM adds LoRAs to"


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that needs no vLLM to be described."""
    described = UnloadedModel("tiny", Path("tiny"), ARCHITECTURE, 64)
    monkeypatch.setattr(admission, "describe_unloaded", lambda settings: described)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "lora", ARCHITECTURE.modules)


def test_a_lora(lora: Path) -> None:
    report = check_adapter(lora, SETTINGS)

    assert (report.verdict, report.exit_code, report.model) == ("taken", 0, "tiny")
    assert report.adapter is not None
    assert report.adapter.version == digest_of(lora)
    assert (report.adapter.kind, report.adapter.rank) == ("lora", 4)
    assert report.adapter.target_modules == ["q_proj", "v_proj"]


def test_a_soft_prompt(tmp_path: Path) -> None:
    folder = write_soft_prompt(tmp_path / "soft", 3, ARCHITECTURE.hidden_size)

    report = check_adapter(folder, SETTINGS)

    assert report.adapter is not None
    assert (report.adapter.kind, report.adapter.virtual_tokens) == ("soft_prompt", 3)


def test_a_task_of_several(tmp_path: Path) -> None:
    folder = write_multitask(tmp_path / "soft", 3, ARCHITECTURE.hidden_size, num_tasks=2)

    of_all, of_one = check_adapter(folder, SETTINGS), check_adapter(folder, SETTINGS, task=1)

    assert of_all.adapter is not None
    assert of_one.adapter is not None
    assert (of_all.adapter.tasks, of_all.adapter.task) == (2, None)
    assert (of_one.adapter.tasks, of_one.adapter.task) == (None, 1)
    assert of_one.adapter.version == digest_of(folder, task=1)


def test_archives(lora: Path, tmp_path: Path) -> None:
    (tmp_path / "lora.tar.gz").write_bytes(pack_tar_gz(lora))
    with zipfile.ZipFile(tmp_path / "lora.zip", "w") as archive:
        for name, content in read_files(lora):
            archive.writestr(f"out/{name}", content)

    for file in ("lora.tar.gz", "lora.zip"):
        report = check_adapter(tmp_path / file, SETTINGS)
        assert report.adapter is not None
        assert report.adapter.version == digest_of(lora)


def test_the_output_folder_of_a_trainer(lora: Path) -> None:
    write_lora(lora / "checkpoint-10", ARCHITECTURE.modules, seed=1)
    (lora / "trainer_state.json").write_text("{}")

    report = check_adapter(lora, SETTINGS)

    assert report.adapter is not None
    assert report.adapter.version == digest_of(lora)


def test_several_adapters(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_lora(tmp_path / "out" / name, ARCHITECTURE.modules)

    with pytest.raises(AdapterRejected, match="adapter files lie in 'one' and in 'two'"):
        check_adapter(tmp_path / "out", SETTINGS)


def test_the_folder_stays_as_it_is_though_another_is_served(tmp_path: Path) -> None:
    """The engine is given names in place of a stranger's patterns."""
    folder = write_lora(tmp_path / "lora", ARCHITECTURE.modules, alpha_pattern={"q_.*": 4})
    before = read_files(folder)

    with admitted(folder, SETTINGS) as adapter:
        assert read_files(adapter.sent) == before
        served = json.loads((adapter.served / CONFIG_FILE).read_bytes())
        assert "q_.*" not in served["alpha_pattern"]

    assert read_files(folder) == before
    assert not adapter.sent.parent.exists()


def test_a_refusal_leaves_no_folder(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    with pytest.raises(AdapterRejected, match="the limit is 2"):
        check_adapter(lora, Settings(max_lora_rank=2))

    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_limits_are_the_settings(lora: Path) -> None:
    with pytest.raises(AdapterTooLarge, match=re.escape("above the limit of 100 bytes")):
        check_adapter(lora, Settings(max_adapter_bytes=100))


def test_force(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "lora", ARCHITECTURE.modules, base_model="team/another-7b")

    with pytest.raises(AdapterRejected, match="was trained on 'team/another-7b'"):
        check_adapter(folder, SETTINGS)
    assert check_adapter(folder, SETTINGS, force=True).verdict == "taken"


def test_a_link_that_leads_outside(lora: Path, tmp_path: Path) -> None:
    (lora / CONFIG_FILE).rename(tmp_path / CONFIG_FILE)
    (lora / CONFIG_FILE).symlink_to(tmp_path / CONFIG_FILE)

    with pytest.raises(AdapterRejected, match="is a link that leads outside"):
        check_adapter(lora, SETTINGS)


def test_what_cannot_be_told_is_said(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = UnloadedModel("tiny", Path("tiny"), ARCHITECTURE, 64, UNKNOWN)
    monkeypatch.setattr(admission, "describe_unloaded", lambda settings: described)

    assert check_adapter(lora, SETTINGS).message == f"unknown: {UNKNOWN}"
