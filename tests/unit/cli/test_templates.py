"""`softserve template` and `softserve evaluate` against the whole app on a fake engine."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli.main import cli
from tests.unit.cli.serving import served

TIMEOUT_SECONDS = 20.0

YAML = """
description: The mood of a text.
input_variables: [text]
example_format: "{{ text }}={{ output }}"
query_format: "{{ text }}="
separator: ""
labels: [good, bad]
max_new_tokens: 30
stop: ["="]
examples:
  - {text: a, output: good}
  - {text: b, output: bad}
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with the template `mood`."""
    with tempfile.TemporaryDirectory() as folder:
        templates = Path(folder, "templates")
        templates.mkdir()
        (templates / "mood.yaml").write_text(YAML)
        with served(Path(folder)) as url:
            yield url


def run(url: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments), "--url", url])


def test_templates_are_listed_shown_added_rolled_back_and_removed(url: str, tmp_path: Path) -> None:
    assert "The mood of a text." in run(url, "template", "list").stdout
    file = tmp_path / "new.yaml"
    for instruction in ("one", "two"):
        file.write_text(YAML + f"instruction: {instruction}")
        assert run(url, "template", "add", "new", file).stdout.startswith("new is live: version ")
    shown = json.loads(run(url, "template", "show", "new", "--json").stdout)
    assert shown["template"]["instruction"] == "two"
    assert run(url, "template", "rollback", "new").exit_code == 0
    assert (
        json.loads(run(url, "template", "show", "new", "--json").stdout)["template"]["instruction"]
        == "one"
    )
    back = run(url, "template", "rollback", "new", "--version", shown["live"][:8])
    assert shown["live"][:8] in back.stdout
    assert run(url, "template", "remove", "new").stdout == "new is removed.\n"
    gone = run(url, "template", "show", "new")
    assert (gone.exit_code, "no template is called 'new'" in gone.stderr) == (1, True)


def test_a_template_is_shown(url: str) -> None:
    heading, _, rest = run(url, "template", "show", "mood").stdout.partition("\n\n")
    assert heading == "mood: The mood of a text."
    table, _, content = rest.partition("\n\n")
    assert table.splitlines()[0].split() == ["version", "live", "created", "source"]
    assert table.splitlines()[2].endswith(" template_dir")
    assert content == run(url, "template", "show", "mood", "--yaml").stdout


def test_what_is_shown_as_yaml_can_be_added(url: str, tmp_path: Path) -> None:
    shown = json.loads(run(url, "template", "show", "mood", "--json").stdout)
    file = tmp_path / "copy.yaml"
    file.write_text(run(url, "template", "show", "mood", "--yaml").stdout)
    assert run(url, "template", "add", "copy", file).exit_code == 0
    copy = json.loads(run(url, "template", "show", "copy", "--json").stdout)
    assert (copy["live"], copy["template"]) == (shown["live"], shown["template"])
    assert run(url, "template", "remove", "copy").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["add", "x", "none.yaml"], "none.yaml cannot be read"),
        (["add", "../x", "none.yaml"], "a template's name has at most 64"),
        (["add", "x", "broken.yaml"], "broken.yaml is no template: it is not YAML"),
        (["rollback", "mood"], "no version older"),
    ],
)
def test_a_template_that_cannot_be_changed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("a: [")
    result = run(url, "template", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("softserve: ")
    assert sentence in result.stderr


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"text": each, "wanted": "a", "more": 1} for each in "xyz"]
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def evaluate(url: str, data: Path, *arguments: str) -> Result:
    own = ["--data", str(data), "--reference", "wanted", "--template", "mood"]
    results = ["--results", str(data.with_name("results.jsonl"))]
    return run(url, "evaluate", *own, *results, *arguments)


def test_an_evaluation(url: str, data: Path) -> None:
    report = data.with_name("report.html")
    arguments = ["--shots", "0,1,2", "--metrics", "exact,accuracy,rouge,bleu", "--out", str(report)]
    result = evaluate(url, data, *arguments)
    assert result.exit_code == 0, result.output
    # The fake engine echoes the prompt, which begins with "a=" as soon as there is an example.
    assert "1 shot" in result.stdout
    assert "paired bootstrap" in result.stdout
    page = report.read_text()
    assert page.count("<svg") == 1
    kept = data.with_name("results.jsonl").read_text().splitlines()
    assert len(kept) == 9
    # Asked again, nothing is.
    again = evaluate(url, data, *arguments, "--adapter", "none")
    assert again.exit_code == 0
    assert evaluate(url, data, *arguments).stdout == result.stdout


def test_a_template_of_this_machine(url: str, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(YAML)
    result = evaluate(
        url, data, "--template", f"mood,{file}", "--shots", "1", "--metrics", "exact",
        "--limit", "2", "--temperature", "0,0.7",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "2 rows" in result.stdout
    assert "mine" in result.stdout
    assert "0.7" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--metrics", "meteor"], "there is no metric meteor"),
        (["--metrics", ","], "--metrics is empty"),
        (["--shots", "few"], "--shots has 'few'"),
        (["--shots", "7"], "shots asks for 7 examples and there are 2"),
        (["--temperature", "hot"], "--temperature has 'hot'"),
        (["--soft-prompt", "none-such"], "no adapter is called 'none-such'"),
        (["--vary", "mood=1"], "--vary has 'mood=1': write CONTROL=A,B, with one of"),
        (["--vary", "top_k"], "--vary has 'top_k': write CONTROL=A,B"),
        (["--vary", "top_k="], "--vary top_k is empty"),
        (["--vary", "top_k=0"], "--vary top_k has '0': it must be greater than or equal to 1"),
        (["--vary", "temperature=1", "--temperature", "0"], "temperature is varied twice"),
        (["--samples", "2"], "--samples 2 would repeat one text"),
        (["--template", "none"], "no template is called 'none'"),
        (["--template", "none.yaml"], "none.yaml cannot be read"),
        (["--adapter", "none-such"], "no adapter is called 'none-such'"),
        (["--reference", "output"], "no row can be used: line 1 has no 'output', only"),
        (["--out", "/no/such/folder/x.html", "--shots", "0"], "cannot be written"),
        (["--results", "/no/such/folder/x.jsonl", "--shots", "0"], "cannot be written"),
        (["--data", "/no/such/file"], "cannot be read (No such file"),
        (["--url", "http://127.0.0.1:9"], "no answer from http://127.0.0.1:9"),
    ],
)
def test_an_evaluation_that_cannot_be(
    url: str, data: Path, arguments: list[str], sentence: str
) -> None:
    given = ["--url", url, *arguments]
    own = ["--data", str(data), "--reference", "wanted", "--template", "mood"]
    results = ["--results", str(data.with_name("results.jsonl"))]
    result = CliRunner().invoke(cli, ["evaluate", *own, *results, *given])
    assert result.exit_code == 1
    assert sentence in " ".join(result.stderr.split()), result.output


def test_any_control_is_varied(url: str, data: Path) -> None:
    result = evaluate(
        url, data, "--shots", "1", "--metrics", "exact", "--vary", "top_k=1,40", "--vary",
        "top-p=0.5,0.9", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    names = [variant["name"] for variant in json.loads(result.stdout)["variants"]]
    assert names == [
        f"1 shot, top_k {top_k}, top_p {top_p}" for top_k in (1, 40) for top_p in (0.5, 0.9)
    ]
    kept = data.with_name("results.jsonl").read_text().splitlines()
    assert len(kept) == 4 * 3


def test_several_samples_a_row(url: str, data: Path) -> None:
    arguments = ["--shots", "1", "--metrics", "exact", "--samples", "3"]
    result = evaluate(url, data, *arguments, "--temperature", "0,0.7")
    assert result.exit_code == 0, result.output
    kept = map(json.loads, data.with_name("results.jsonl").read_text().splitlines())
    assert sorted(len(each["completions"]) for each in kept) == [1, 1, 1, 3, 3, 3]


def test_a_list_in_json_may_hold_commas(url: str, data: Path) -> None:
    result = evaluate(
        url, data, "--shots", "0", "--metrics", "exact", "--vary", 'stop=["x,y", "="]', "--json"
    )
    assert result.exit_code == 0, result.output
    names = [variant["name"] for variant in json.loads(result.stdout)["variants"]]
    assert names == ["0 shots, stop x,y", "0 shots, stop ="]


def test_a_line_separator_in_the_data_ends_no_row(url: str, data: Path) -> None:
    data.write_text('{"text": "x\u2028y", "wanted": "x"}\n')
    result = evaluate(url, data, "--shots", "0", "--metrics", "exact")
    assert result.exit_code == 0, result.output
    assert "1 rows" in result.stdout


def test_rows_that_cannot_be_asked_are_left_out_by_line(url: str, data: Path) -> None:
    fine = '{"text": "x", "wanted": "x"}'
    rows = [
        fine,
        "",
        '{"text": "page\\u000cpage", "wanted": "x"}',
        '{"text": 7, "wanted": "x"}',
        '{"text": null, "wanted": "x"}',
        '{"text": "x", "wanted": null}',
        '{"text": "x"}',
        fine,
    ]
    data.write_text("\ufeff" + "\r\n".join(rows), newline="")
    result = evaluate(url, data, "--shots", "0", "--metrics", "exact")
    assert result.exit_code == 0, result.output
    assert "2 rows" in result.stdout
    for line, why in {
        3: "has a 'text' that cannot be asked: the control character U+000C",
        4: "has a 'text' that cannot be asked: must be a text",
        5: "has a 'text' that cannot be asked: must be a text",
        6: "has a 'wanted' that is no text",
        7: "has no 'wanted', only text",
    }.items():
        assert f"left out: line {line} {why}" in result.stderr


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "x"', "is not JSON ("),
        (b'{"text": "a\x0cb", "wanted": "x"}', "is not JSON (Invalid control character"),
        (b'{"text": "\xff", "wanted": "x"}', "is not UTF-8"),
        (b'["x"]', "is no JSON object"),
    ],
)
def test_a_line_that_is_no_row_is_named(url: str, data: Path, line: bytes, why: str) -> None:
    data.write_bytes(b'{"text": "x", "wanted": "x"}\n\n' + line)
    result = evaluate(url, data, "--shots", "0")
    assert result.exit_code == 1
    assert f"data.jsonl: line 3 {why}" in result.stderr


def test_rows_that_do_not_fit_are_left_out(url: str, data: Path) -> None:
    rows = [{"text": "x", "wanted": "x"}, {"text": "y" * 300, "wanted": "y"}]
    data.write_text("\n".join(map(json.dumps, rows)))
    result = evaluate(url, data, "--shots", "0", "--metrics", "exact")
    assert result.exit_code == 0, result.output
    assert "1 rows were left out" in result.stdout
    assert "0 shots: 1 refused" in result.stdout
    assert "left out: line 2 is refused: inputs with zero" in result.stderr


def test_it_is_said_which_replicas_serve_it(tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()
    file = tmp_path / "mood.yaml"
    file.write_text(YAML)
    with served(tmp_path, origin=f"file://{tmp_path}/origin") as url:
        added = run(url, "template", "add", "mood", file, "--wait-all")
        assert added.stdout.splitlines()[1] == "1 of 1 replicas serve it."
        assert "replicas" not in run(url, "template", "add", "mood", file).stdout
        shown = json.loads(run(url, "template", "rollback", "mood", "--json").stdout or "{}")
        assert "serves" not in str(shown)
