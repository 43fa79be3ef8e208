"""The playground, by clicks and keys, in a real browser on a real server."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.browser.conftest import ADMIN_KEY, TIMEOUT_MILLISECONDS
from tests.server.process import ServerProcess

expect.set_options(timeout=TIMEOUT_MILLISECONDS)

VIEWS = ["Inspect", "Generate", "Compare", "Templates", "Adapters"]
# Greedy, and far from a tie: the same on every machine.
FRANCE = {"prompt": "Tell me the capital of France.", "use_chat_template": True}
ANSWER = "The capital of France is Paris."


def go_to(page: Page, view: str, **state: Any) -> None:
    """A link, as the page makes it."""
    page.goto("about:blank")
    page.goto("/#" + quote(json.dumps({"view": view, **state})))
    expect(page.locator("main .view")).to_be_visible()


def press(page: Page, name: str) -> None:
    page.locator("main").get_by_role("button", name=name, exact=True).click()


def answer_of(page: Page) -> Locator:
    return page.get_by_role("group", name="Completion")


def control(page: Page, name: str) -> Locator:
    return page.get_by_role("spinbutton", name=name, exact=True)


def slider(page: Page, name: str) -> Locator:
    return page.get_by_role("slider", name=name, exact=True)


def test_the_log_names_the_address(server: ServerProcess) -> None:
    said = [json.loads(line) for line in server.log if line.startswith("{")]
    assert [each["url"] for each in said if "playground" in each["event"]] == [f"{server.url}/"]


# Inspect: what one sees first.


def test_the_first_thing_to_see_is_what_temperature_does(page: Page) -> None:
    rows = page.locator(".distribution tbody tr")
    expect(rows).to_have_count(24)
    expect(rows.first.locator("th")).to_have_text("␣a")
    status = page.locator(".distribution").get_by_role("status")
    expect(status).to_contain_text("49,152 of 49,152 tokens can be sampled")
    before = rows.first.locator("td.number").nth(1).inner_text()
    slider(page, "temperature").press("ArrowLeft")
    expect(rows.first.locator("td.number").nth(1)).not_to_have_text(before)
    slider(page, "temperature").press("Home")
    expect(status).to_contain_text("1 of 49,152 tokens can be sampled: decoding is greedy")
    expect(page.locator(".distribution tr.out")).to_have_count(23)


def test_filters_show_what_they_remove(page: Page) -> None:
    control(page, "top_k").fill("5")
    status = page.locator(".distribution").get_by_role("status")
    expect(status).to_contain_text("5 of 49,152 tokens can be sampled; after temperature they hold")
    removed = page.locator(".distribution tr.out")
    expect(removed).to_have_count(19)
    expect(removed.first.locator("td.number").last).to_have_text("top_k")
    page.get_by_role("button", name="Reset top_k").click()
    expect(removed).to_have_count(0)


def test_on_a_phone_the_chart_stays_in_view_while_a_slider_moves(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    last = slider(page, "top_k")
    last.scroll_into_view_if_needed()
    last.press("ArrowRight")
    expect(last).to_be_in_viewport()
    expect(page.locator(".distribution tbody tr").first).to_be_in_viewport()


def test_what_the_server_refuses_stands_at_its_control(page: Page) -> None:
    control(page, "temperature").fill("3")
    at = page.locator(".control", has=control(page, "temperature"))
    expect(at.get_by_role("alert")).to_contain_text("2")
    control(page, "temperature").fill("1")
    expect(at.get_by_role("alert")).to_have_count(0)


# Generate.


def test_a_text_streams_with_its_facts(page: Page) -> None:
    go_to(page, "Generate", request=FRANCE)
    page.get_by_role("textbox", name="Prompt").press("Control+Enter")
    expect(answer_of(page)).to_contain_text(ANSWER)
    facts = page.locator(".facts")
    for fact in ("stop: ", "37 prompt tokens", "8 completion tokens", "tokens a second"):
        expect(facts).to_contain_text(fact)


def test_a_token_tells_what_else_was_likely_and_another_is_gone_on_from(page: Page) -> None:
    go_to(page, "Generate", request=FRANCE)
    press(page, "Generate")
    answer_of(page).get_by_role("button", name="Paris").click()
    likely = page.get_by_role("region", name="What else was likely here")
    expect(likely.get_by_role("listitem")).to_have_count(8)
    expect(likely.locator(".chosen")).to_contain_text("Paris")
    other = likely.get_by_role("button").nth(1)
    text = other.inner_text().replace("␣", " ")
    assert text.strip() != "Paris"
    other.click()
    expect(page.locator(".facts")).to_contain_text("completion tokens")
    expect(answer_of(page)).to_contain_text("The capital of France is" + text)


def test_arrows_go_from_token_to_token(page: Page) -> None:
    go_to(page, "Generate", request=FRANCE)
    press(page, "Generate")
    tokens = answer_of(page).get_by_role("button")
    expect(tokens).to_have_count(8)
    tokens.first.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tokens.nth(1)).to_have_attribute("aria-pressed", "true")


def test_stop_ends_a_completion(page: Page) -> None:
    go_to(page, "Generate", request={**FRANCE, "ignore_eos": True, "max_new_tokens": 5000})
    press(page, "Generate")
    expect(page.locator(".token").nth(3)).to_be_visible()
    press(page, "Stop")
    expect(page.locator(".facts")).to_have_text("stopped")


def test_a_completion_that_has_to_be_of_a_form(page: Page) -> None:
    go_to(page, "Generate", request=FRANCE)
    page.get_by_text("Structure").click()
    schema = page.get_by_role("textbox", name="json_schema", exact=True)
    schema.fill("{")
    press(page, "Generate")
    at = page.locator(".control", has=schema)
    expect(at.get_by_role("alert")).to_contain_text("json_schema")
    schema.fill('{"enum": ["Rome"]}')
    press(page, "Generate")
    expect(answer_of(page)).to_contain_text('"Rome"')
    page.get_by_role("button", name="Reset json_schema").click()
    page.get_by_role("textbox", name="choice", exact=True).fill("Rome\nParis")
    press(page, "Generate")
    expect(answer_of(page)).to_contain_text("Paris")
    expect(page.locator(".facts")).to_contain_text("stop: ")


def test_several_completions(page: Page) -> None:
    go_to(page, "Generate", request={**FRANCE, "temperature": 1, "n": 2, "seed": 1})
    press(page, "Generate")
    expect(page.get_by_role("heading", name="2 of 2")).to_be_visible()
    expect(page.locator(".facts")).to_contain_text("completion tokens")


def test_markup_of_a_model_is_text(page: Page) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    line = "<script>alert(1)</script><img src=x onerror=alert(2)>\n"
    go_to(page, "Generate", request={"prompt": line * 6, "max_new_tokens": 40})
    press(page, "Generate")
    expect(page.locator(".facts")).to_contain_text("40 completion tokens")
    expect(answer_of(page)).to_contain_text("<script>alert(1)</script>")
    assert page.locator("main script, main img").count() == 0


@pytest.mark.parametrize(
    ("language", "beginning"), [("curl", "curl -s 'http://127"), ("Python", "import httpx")]
)
def test_a_request_is_copied_as_code(language: str, beginning: str, page: Page) -> None:
    go_to(page, "Generate", request={**FRANCE, "max_new_tokens": 7})
    press(page, f"Copy as {language}")
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    code = page.evaluate("navigator.clipboard.readText()")
    assert code.startswith(beginning)
    assert re.search(r"\"max_new_tokens\": ?7", code)


def test_a_link_carries_what_is_set(page: Page, context: BrowserContext) -> None:
    control(page, "top_p").fill("0.5")
    page.get_by_role("textbox", name="Prompt").fill("Once upon")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("button", name="Copy link").click()
    other = context.new_page()
    other.goto(page.evaluate("navigator.clipboard.readText()"))
    expect(control(other, "top_p")).to_have_value("0.5")
    expect(other.get_by_role("textbox", name="Prompt")).to_have_value("Once upon")


# Compare.


def test_columns_stream_side_by_side_and_differences_are_marked(page: Page) -> None:
    columns = [{"max_new_tokens": 16}, {"max_new_tokens": 16}, {"max_new_tokens": 4}]
    go_to(
        page,
        "Compare",
        request=FRANCE,
        compare={"source": "prompt", "seed": 1, "columns": [*columns, {"temperature": 2}]},
    )
    press(page, "Generate")
    answers = answer_of(page)
    expect(answers).to_have_count(4)
    expect(answers.nth(0)).to_have_text(ANSWER)
    expect(answers.nth(1)).to_have_text(ANSWER)
    expect(answers.nth(2)).to_have_text("The capital of France")
    expect(page.locator(".facts", has_text="completion tokens")).to_have_count(4)
    assert answers.nth(1).locator("mark").count() == answers.nth(2).locator("mark").count() == 0
    assert answers.nth(3).locator("mark").count() > 0


def test_shots_are_compared(page: Page) -> None:
    go_to(
        page,
        "Compare",
        compare={"source": "template", "seed": 1, "columns": [{"shots": 0}, {"shots": 3}]},
        template={
            "template": "text-to-json",
            "inputs": {"order": "I would like two clocks. Ship them to Madrid."},
        },
    )
    press(page, "Generate")
    expect(answer_of(page).nth(1)).to_have_text(
        '{"item": "clock", "quantity": 2, "city": "Madrid"}'
    )
    expect(page.get_by_text("text-to-json@")).to_have_count(2)


# Templates.


def test_a_template_shows_its_prompt_and_the_labels(page: Page) -> None:
    inputs = {"review": "The handle came off after one week."}
    go_to(page, "Templates", template={"template": "sentiment", "inputs": inputs, "shots": 2})
    prompt = page.get_by_label("The exact prompt")
    expect(prompt).to_contain_text("The zip broke on the second day")
    expect(prompt).to_contain_text(inputs["review"])
    expect(page.get_by_text("Examples in it: 2")).to_be_visible()
    page.get_by_text("Left out: 6").click()
    expect(page.get_by_text("(2 were asked for)").first).to_be_visible()
    page.get_by_role("combobox", name="Shots").select_option("0")
    expect(prompt).not_to_contain_text("The zip broke")
    page.get_by_role("combobox", name="Shots").select_option("3")
    press(page, "Generate")
    labels = page.get_by_role("region", name="Labels")
    expect(labels.locator(".chosen")).to_contain_text("negative")


def test_a_copy_is_tried_and_saved(page: Page) -> None:
    go_to(page, "Templates", template={"template": "sentiment", "inputs": {}, "shots": 1})
    press(page, "Edit a copy")
    copy = page.get_by_role("textbox", name="A copy, tried without saving it")
    copy.fill(copy.input_value().replace("Decide whether", "Say whether"))
    expect(page.get_by_label("The exact prompt")).to_contain_text("Say whether")
    page.get_by_role("textbox", name="Save as a new version of").fill("my-sentiment")
    press(page, "Save")
    give_key(page)
    expect(page.get_by_role("combobox", name="Template")).to_have_value("my-sentiment")
    expect(page.get_by_label("The exact prompt")).to_contain_text("Say whether")
    assert ADMIN_KEY not in page.url


def test_a_copy_that_is_no_json(page: Page) -> None:
    go_to(page, "Templates", template={"template": "sentiment", "draft": "{"})
    expect(page.get_by_role("alert").filter(has_text="the copy is not JSON")).to_be_visible()


# Adapters, and the key.


def give_key(page: Page) -> None:
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("this needs a key")
    dialog.get_by_label("Key", exact=True).fill(ADMIN_KEY)
    dialog.get_by_role("button", name="Use it").click()


def test_an_adapter_from_upload_to_removal(page: Page, lora: Path) -> None:
    go_to(page, "Adapters")
    page.get_by_label("choose files").set_input_files(sorted(lora.glob("adapter_*")))
    page.get_by_role("textbox", name="Name").fill("intent")
    press(page, "Add")
    give_key(page)
    expect(page.get_by_text(re.compile("intent@[0-9a-f]{12} is live"))).to_be_visible()
    entry = page.locator(".adapters > li", has_text="intent")
    expect(entry).to_contain_text("LoRA")

    other = lora.with_name("dialogue-summary-lora")
    page.get_by_label("choose files").set_input_files(sorted(other.glob("adapter_*")))
    press(page, "Add")
    entry.locator("summary").click()
    expect(entry.locator(".versions > li")).to_have_count(2)
    newest = entry.locator(".versions > li", has=page.locator(".live")).locator("code").inner_text()
    entry.get_by_role("button", name=re.compile("Make .* live")).click()
    expect(entry.get_by_role("button", name=f"Make {newest} live")).to_be_visible()

    live = entry.locator(".versions > li", has=page.locator(".live")).locator("code").inner_text()
    for pointer, body in {
        "split": {"versions": {live: 3, newest: 1}},
        "shadow": {"version": newest, "percent": 10},
    }.items():
        page.request.post(
            f"/adapters/intent/{pointer}",
            data=body,
            headers={"authorization": f"Bearer {ADMIN_KEY}"},
            fail_on_status_code=True,
        )
        go_to(page, "Adapters")
        entry.locator("summary").click()
        shares = entry.locator(".versions > li", has_text="of the requests")
        if pointer == "split":
            expect(shares).to_have_count(2)
            expect(shares.filter(has=page.locator(".live"))).to_contain_text("75.0%")
    expect(shares.filter(has_text=newest)).to_contain_text("copies of 10.0% of the requests")

    go_to(page, "Generate", request={"prompt": "Message: I was charged twice.\nIntent:"})
    page.get_by_role("combobox", name="Adapter").fill("intent")
    versions = page.get_by_role("combobox", name="Version of intent").locator("option")
    expect(versions.nth(1)).to_contain_text("(live)")
    control(page, "temperature").fill("")
    press(page, "Generate")
    expect(page.get_by_text("made with intent@")).to_be_visible()

    go_to(page, "Adapters")
    entry.locator("summary").click()
    press(page, "Remove intent")
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    give_key(page)
    expect(entry).to_have_count(0)


def test_a_folder_is_dropped(page: Page, context: BrowserContext, lora: Path) -> None:
    go_to(page, "Adapters")
    box = page.locator(".drop").bounding_box()
    assert box is not None
    browser = context.new_cdp_session(page)
    for event in ("dragEnter", "dragOver", "drop"):
        browser.send(
            "Input.dispatchDragEvent",
            {
                "type": event,
                "x": box["x"] + 20,
                "y": box["y"] + 20,
                "data": {"items": [], "files": [str(lora)], "dragOperationsMask": 1},
            },
        )
    expect(page.locator(".drop li", has_text="adapter_model.safetensors")).to_be_visible()
    expect(page.get_by_role("textbox", name="Name")).to_have_value("support-intent-lora")


def test_what_is_no_adapter_is_refused_with_the_reason(page: Page, tmp_path: Path) -> None:
    wrong = tmp_path / "adapter_config.json"
    wrong.write_text("{}")
    go_to(page, "Adapters")
    page.get_by_label("choose files").set_input_files(wrong)
    page.get_by_role("textbox", name="Name").fill("wrong")
    press(page, "Add")
    give_key(page)
    expect(page.get_by_role("alert").filter(has_text="adapter_model.safetensors")).to_be_visible()


def test_five_hundred_adapters(page: Page) -> None:
    version = {
        "version": "9f86d081884c7d65" * 4,
        "live": True,
        "created_at": "2026-11-24T09:30:00Z",
        "source": "upload",
        "size_bytes": 1_846_240,
        "rank": 8,
        "virtual_tokens": None,
        "loaded": True,
        "warning": None,
        "notes": [],
        "requests": 0,
    }
    many = [
        {
            "name": f"task-{number:03}",
            "kind": "lora",
            "live": version["version"],
            "requests": 0,
            "rejected": None,
            "versions": [version],
        }
        for number in range(500)
    ]
    page.route("**/adapters", lambda route: route.fulfill(json={"adapters": many}))
    go_to(page, "Adapters")
    entries = page.locator(".adapters > li")
    expect(entries).to_have_count(500)
    page.get_by_role("searchbox", name="Find").fill("task-42")
    expect(entries).to_have_count(10)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("datalist").first.locator("option")).to_have_count(500)


# Everybody can use it.


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_accessible_and_fits(view: str, width: int, scheme: Any, page: Page) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    go_to(page, view, request=FRANCE)
    if view in {"Generate", "Compare", "Templates"}:
        press(page, "Generate")
        expect(page.locator(".facts").first).to_contain_text("completion tokens")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    violations = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == []


def test_the_documentation_is_no_blank_page(page: Page) -> None:
    page.goto("/docs")
    expect(page.get_by_text("Complete one prompt or several")).to_be_visible()
