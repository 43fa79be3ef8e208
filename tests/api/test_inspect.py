"""POST /inspect over HTTP. (Its arithmetic is tested in tests/unit/serving/test_inspection.py.)"""

import pytest

from tests.api.support import Served, error_of
from tests.fake_engine import VOCABULARY_SIZE

KEPT_BY_ALL = {"min_p": True, "top_k": True, "top_p": True}


async def test_the_whole_answer(served: Served) -> None:
    response = await served.inspect("hello", top_k=1, num_tokens=2)
    assert response.status_code == 200
    answer = response.json()
    sampling = answer.pop("sampling")
    assert (sampling["greedy"], sampling["temperature"], sampling["top_k"]) == (False, 1.0, 1)
    best, second = answer["tokens"]
    assert [best["token_id"], best["token"]] == [ord("h"), "h"]
    assert best["probability"] == best["after_temperature"] == answer["surviving_mass"] > 0.5
    assert best["kept_by"] == KEPT_BY_ALL
    assert best["final"] == 1.0
    assert second["token"] == chr(second["token_id"]) == chr(0)
    assert second["kept_by"] == {"min_p": True, "top_k": False, "top_p": None}
    assert second["final"] == 0.0
    del answer["tokens"], answer["surviving_mass"]
    assert answer == {
        "id": response.headers["x-request-id"],
        "model": "echo",
        "prompt_tokens": 5,
        "virtual_tokens": 0,
        "vocabulary_size": VOCABULARY_SIZE,
        "num_surviving": 1,
    }


async def test_the_whole_vocabulary_can_be_shown(served: Served) -> None:
    answer = (await served.inspect(temperature=1, num_tokens=1000)).json()
    assert len(answer["tokens"]) == answer["num_surviving"] == VOCABULARY_SIZE
    assert sum(token["final"] for token in answer["tokens"]) == pytest.approx(1.0)


async def test_ten_tokens_unless_asked_otherwise(served: Served) -> None:
    assert len((await served.inspect(num_tokens=None)).json()["tokens"]) == 10
    assert len((await served.inspect()).json()["tokens"]) == 10


async def test_the_most_likely_token_is_what_greedy_decoding_takes(served: Served) -> None:
    best = (await served.inspect("hello", num_tokens=1)).json()["tokens"][0]
    answer = (await served.generate("hello", max_new_tokens=1)).json()
    assert answer["completions"][0]["text"] == best["token"]
    assert best["final"] == 1.0


async def test_chat_template(served: Served) -> None:
    answer = (await served.inspect("hi", use_chat_template=True, system="be kind")).json()
    assert answer["prompt_tokens"] == len("[system]be kind[user]hi[assistant]")
    assert answer["tokens"][0]["token_id"] == ord("[")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a list"]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a" * 256}, "prompt"),
        ({"num_tokens": 0}, "num_tokens"),
        ({"num_tokens": 1001}, "num_tokens"),
        ({"temperature": 0, "top_k": 3}, "top_k"),
        ({"temperature": 3}, "temperature"),
        ({"top_k": 258}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"system": "alone"}, "system"),
        ({"max_new_tokens": 5}, "max_new_tokens"),
        ({"seed": 1}, "seed"),
        ({"n": 1}, "n"),
    ],
)
async def test_bad_input(served: Served, fields: dict[str, object], param: str) -> None:
    response = await served.inspect(**{"prompt": "hello", **fields})
    status, _, named = error_of(response)
    assert (status, named) == (422, param)


async def test_a_field_of_another_endpoint_is_not_suggested(served: Served) -> None:
    response = await served.inspect("hello", repetition_penalty=1.2)

    assert response.json()["error"]["message"] == (
        "there is no field repetition_penalty: GET /docs lists the fields"
    )
