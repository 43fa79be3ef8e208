"""The playground on a server of an encoder-decoder model, whose decoder has a prompt of its own."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.test_playground import answer_of, go_to, press
from tests.server.process import ServerProcess, running
from tests.server.requests import generate, text_of
from tests.server.tiny_models import make_t5

START = ("--context-window", "64", "--encoder-window", "48", "--kv-cache-gib", "0.1")
ASKED = {"prompt": "She watches the river", "max_new_tokens": 12}
DECODER_PROMPT = "the house"


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    model = make_t5(tmp_path_factory.mktemp("t5") / "model")
    with running(*START, "--model", str(model)) as process:
        yield process.wait_until_ready()


def test_both_windows_are_shown_and_no_chat_template(page: Page) -> None:
    expect(page.locator(".model")).to_contain_text("encoder's window 48, decoder's 64")
    for view in ("Inspect", "Generate", "Compare"):
        go_to(page, view, request=ASKED)
        expect(page.get_by_role("textbox", name="Decoder prompt")).to_be_visible()
        expect(page.get_by_role("checkbox", name="Chat template")).to_have_count(0)


def test_a_text_goes_on_from_the_decoders_prompt(page: Page, server: ServerProcess) -> None:
    with server.client() as client:
        plain, started = (
            text_of(generate(client, **ASKED, **start))
            for start in ({}, {"decoder_prompt": DECODER_PROMPT})
        )
    assert plain != started
    go_to(page, "Generate", request=ASKED)
    press(page, "Generate")
    expect(answer_of(page)).to_have_text(plain)
    page.get_by_role("textbox", name="Decoder prompt").fill(DECODER_PROMPT)
    press(page, "Generate")
    expect(answer_of(page)).to_have_text(started)


def test_another_token_is_gone_on_from(page: Page, server: ServerProcess) -> None:
    """The decoder has the text up to it: the prompt stays the encoder's."""
    go_to(page, "Generate", request=ASKED | {"decoder_prompt": DECODER_PROMPT})
    press(page, "Generate")
    answer_of(page).get_by_role("button").nth(3).click()
    likely = page.get_by_role("region", name="What else was likely here")
    expect(likely.get_by_role("listitem")).to_have_count(8)
    with page.expect_request("**/generate") as asked:
        likely.get_by_role("button").nth(1).click()
    body = asked.value.post_data_json
    assert body is not None
    assert body["prompt"] == ASKED["prompt"]
    begun = body["decoder_prompt"].removeprefix(DECODER_PROMPT)
    assert begun
    with server.client() as client:
        expected = text_of(generate(client, **body | {"stream": False, "logprobs": None}))
    expect(answer_of(page)).to_have_text(begun + expected)
