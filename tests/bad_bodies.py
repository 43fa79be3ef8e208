"""Bodies of `POST /generate` that no server may accept, whatever its model.

Each is (id, body, expected status, expected `param` of the one error body). The in-process app and
the real server are sent all of them. Limits are the defaults.
"""

import json
from typing import Any


def _with(**fields: Any) -> bytes:
    return json.dumps({"prompt": "hello", **fields}).encode()


def _prompt(prompt: Any) -> bytes:
    return json.dumps({"prompt": prompt}).encode()


def _only(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _messages(*messages: Any) -> bytes:
    return json.dumps({"messages": messages}).encode()


def _raw(fields: str) -> bytes:
    return f'{{"prompt": "hello", {fields}}}'.encode()


# The most digits that Python's JSON parser takes; one more, and it cannot be written in a message.
HELLO = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "hello"}
MOST_DIGITS = b"9" * 4300
HUGE_N = b'{"prompt": ["a", "b"], "temperature": 1, "n": ' + MOST_DIGITS + b"}"
HUGE_MAX_NEW_TOKENS = (
    b'{"prompt": "' + b"word " * 10_000 + b'", "max_new_tokens": ' + MOST_DIGITS + b"}"
)
LONE_SURROGATE_SYSTEM = b'{"prompt": "a", "use_chat_template": true, "system": "\\ud800"}'

NOT_JSON: list[tuple[str, bytes]] = [
    ("spaces", b"   "),
    ("not json", b"prompt=hello"),
    ("truncated", b'{"prompt": "hel'),
    ("trailing comma", b'{"prompt": "hello",}'),
    ("two documents", b'{"prompt": "hello"} {"prompt": "hello"}'),
    ("single quotes", b"{'prompt': 'hello'}"),
    ("comment", b'{"prompt": "hello" /* why */}'),
    ("raw newline in string", b'{"prompt": "hel\nlo"}'),
    ("raw control character in string", b'{"prompt": "hel\x00lo"}'),
    ("bad escape", b'{"prompt": "\\x41"}'),
    ("half an escape", b'{"prompt": "\\u00"}'),
    ("invalid utf-8 in value", b'{"prompt": "\xff\xfe"}'),
    ("truncated utf-8 in value", b'{"prompt": "\xe2\x82"}'),
    ("overlong utf-8 in value", b'{"prompt": "\xc0\xaf"}'),
    ("invalid utf-8 in field name", b'{"prompt": "hello", "\xff": 1}'),
    ("deep lists", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("deep objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    ("unclosed deep lists", b"[" * 200_000),
    ("integer of 5,000 digits", b'{"prompt": "hello", "n": ' + b"9" * 5000 + b"}"),
]

NOT_AN_OBJECT: list[tuple[str, bytes]] = [
    ("empty body", b""),
    ("null", b"null"),
    ("number", b"7"),
    ("string", b'"hello"'),
    ("list", b'["hello"]'),
    ("true", b"true"),
]

WRONG_FIELD: list[tuple[str, bytes, str]] = [
    ("no prompt", b"{}", "prompt"),
    ("no prompt but others", b'{"max_new_tokens": 5}', "prompt"),
    ("prompt null", _prompt(None), "prompt"),
    ("prompt number", _prompt(7), "prompt"),
    ("prompt bool", _prompt(True), "prompt"),
    ("prompt object", _prompt({"text": "hello"}), "prompt"),
    ("prompt empty", _prompt(""), "prompt"),
    ("prompt empty list", _prompt([]), "prompt"),
    ("prompt list with empty", _prompt(["hello", ""]), "prompt"),
    ("prompt list with null", _prompt(["hello", None]), "prompt"),
    ("prompt list of token ids", _prompt([1, 2, 3]), "prompt"),
    ("prompt list of lists", _prompt([["hello"]]), "prompt"),
    ("prompt nul", _prompt("a\0b"), "prompt"),
    ("prompt escape", _prompt("\x1b[31mred"), "prompt"),
    ("prompt delete", _prompt("a\x7fb"), "prompt"),
    ("prompt c1 control", _prompt("a\x85b"), "prompt"),
    ("prompt lone high surrogate", b'{"prompt": "\\ud800"}', "prompt"),
    ("prompt surrogate in utf-8", b'{"prompt": "\xed\xa0\x80"}', "prompt"),
    ("prompt lone low surrogate", b'{"prompt": "a\\udc00b"}', "prompt"),
    ("prompt surrogates in wrong order", b'{"prompt": "\\udc00\\ud800"}', "prompt"),
    ("prompt list with lone surrogate", b'{"prompt": ["a", "\\ud800"]}', "prompt"),
    ("too many prompts", _prompt(["hello"] * 33), "prompt"),
    ("prompt beyond any context window", _prompt("word " * 150_000), "prompt"),
    ("duplicate key, last one wrong", b'{"prompt": "hello", "prompt": 7}', "prompt"),
    ("prompt and messages", _with(messages=[HELLO]), "messages"),
    ("prompt and tokens", _with(prompt_token_ids=[1]), "prompt_token_ids"),
    ("messages and tokens", _only(messages=[HELLO], prompt_token_ids=[1]), "prompt_token_ids"),
    ("messages empty", _messages(), "messages"),
    ("messages text", _only(messages="hello"), "messages"),
    ("messages object", _only(messages=HELLO), "messages"),
    ("message text", _messages("hello"), "messages"),
    ("message of no conversation", _messages([HELLO], []), "messages"),
    ("message beside a conversation", _messages([HELLO], HELLO), "messages"),
    ("message without content", _messages({"role": "user"}), "messages"),
    ("message without role", _messages({"content": "hello"}), "messages"),
    ("message of an unknown role", _messages({**HELLO, "role": "tool"}), "messages"),
    ("message with a name", _messages({**HELLO, "name": "Ann"}), "messages"),
    ("message of parts", _messages({**HELLO, "content": [{"text": "hello"}]}), "messages"),
    ("message null", _messages({**HELLO, "content": None}), "messages"),
    ("message control", _messages({**HELLO, "content": "a\0b"}), "messages"),
    (
        "message lone surrogate",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        "messages",
    ),
    ("messages end with an answer", _messages(HELLO, ANSWER), "messages"),
    ("too many messages", _messages(*[HELLO] * 257), "messages"),
    ("too many messages together", _messages(*[[HELLO] * 9] * 30), "messages"),
    ("too many conversations", _messages(*[[HELLO]] * 33), "messages"),
    ("messages with system", _only(messages=[HELLO], system="Be brief."), "system"),
    (
        "messages with chat template",
        _only(messages=[HELLO], use_chat_template=True),
        "use_chat_template",
    ),
    ("tokens empty", _only(prompt_token_ids=[]), "prompt_token_ids"),
    ("tokens number", _only(prompt_token_ids=7), "prompt_token_ids"),
    ("tokens object", _only(prompt_token_ids={"7": 7}), "prompt_token_ids"),
    ("tokens of no prompt", _only(prompt_token_ids=[[1], []]), "prompt_token_ids"),
    ("token beside a prompt", _only(prompt_token_ids=[[1], 1]), "prompt_token_ids"),
    ("token text", _only(prompt_token_ids=["1"]), "prompt_token_ids"),
    ("token float", _only(prompt_token_ids=[1.0]), "prompt_token_ids"),
    ("token bool", _only(prompt_token_ids=[True]), "prompt_token_ids"),
    ("token null", _only(prompt_token_ids=[None]), "prompt_token_ids"),
    ("token negative", _only(prompt_token_ids=[-1]), "prompt_token_ids"),
    ("token beyond the vocabulary", _only(prompt_token_ids=[10**7]), "prompt_token_ids"),
    ("token of 400 digits", _only(prompt_token_ids=[10**400]), "prompt_token_ids"),
    ("tokens beyond the context window", _only(prompt_token_ids=[1] * 10**5), "prompt_token_ids"),
    (
        "tokens with chat template",
        _only(prompt_token_ids=[1], use_chat_template=True),
        "use_chat_template",
    ),
    ("too many prompts of tokens", _only(prompt_token_ids=[[1]] * 33), "prompt_token_ids"),
    ("json_schema text", _with(json_schema="{}"), "json_schema"),
    ("json_schema list", _with(json_schema=[]), "json_schema"),
    ("json_schema bool", _with(json_schema=True), "json_schema"),
    ("json_schema nan", _raw('"json_schema": {"const": NaN}'), "json_schema"),
    ("json_schema lone surrogate", _raw('"json_schema": {"const": "\\ud800"}'), "json_schema"),
    ("json_schema too long", _with(json_schema={"const": "x" * 16_384}), "json_schema"),
    ("regex empty", _with(regex=""), "regex"),
    ("regex list", _with(regex=["a"]), "regex"),
    ("regex nul", _with(regex="\0"), "regex"),
    ("regex too long", _with(regex="x" * 16_385), "regex"),
    ("regex that is none", _with(regex="(a"), "regex"),
    ("choice text", _with(choice="yes"), "choice"),
    ("choice empty", _with(choice=[]), "choice"),
    ("choice with empty", _with(choice=["yes", ""]), "choice"),
    ("choice with number", _with(choice=[1]), "choice"),
    ("choice too long", _with(choice=["x" * 100] * 200), "choice"),
    ("two structures", _with(regex="a", choice=["a"]), "choice"),
    ("choice with min_new_tokens", _with(choice=["a"], min_new_tokens=1), "min_new_tokens"),
    ("regex with ignore_eos", _with(regex="a", ignore_eos=True), "ignore_eos"),
    ("num_beams without an encoder", _with(num_beams=2), "num_beams"),
    ("num_beams zero", _with(num_beams=0), "num_beams"),
    ("num_beams above 16", _with(num_beams=17), "num_beams"),
    ("num_beams bool", _with(num_beams=True), "num_beams"),
    ("num_beams with a temperature", _with(num_beams=2, temperature=0.5), "temperature"),
    ("length_penalty without beams", _with(length_penalty=2.0), "length_penalty"),
    ("length_penalty above 5", _with(num_beams=2, length_penalty=5.5), "length_penalty"),
    ("early_stopping without beams", _with(early_stopping=True), "early_stopping"),
    ("early_stopping another word", _with(num_beams=2, early_stopping="always"), "early_stopping"),
    ("early_stopping number", _with(num_beams=2, early_stopping=1), "early_stopping"),
    ("unknown field", _with(colour="red"), "colour"),
    ("unknown field, misspelt", _with(temprature=0.5), "temprature"),
    ("unknown field of another server", _with(max_tokens=5), "max_tokens"),
    ("unknown field, empty name", _with(**{"": 1}), ""),
    ("unknown field, deep value", _with(extra={"a": [{"b": [[[]]]}]}), "extra"),
    ("field in wrong case", _with(Temperature=0.5), "Temperature"),
    ("max_new_tokens zero", _with(max_new_tokens=0), "max_new_tokens"),
    ("max_new_tokens negative", _with(max_new_tokens=-1), "max_new_tokens"),
    ("max_new_tokens float", _with(max_new_tokens=5.0), "max_new_tokens"),
    ("max_new_tokens string", _with(max_new_tokens="5"), "max_new_tokens"),
    ("max_new_tokens bool", _with(max_new_tokens=True), "max_new_tokens"),
    ("max_new_tokens list", _with(max_new_tokens=[5]), "max_new_tokens"),
    ("max_new_tokens beyond context window", _with(max_new_tokens=10**9), "max_new_tokens"),
    ("max_new_tokens of 4,300 digits", HUGE_MAX_NEW_TOKENS, "max_new_tokens"),
    ("min_new_tokens negative", _with(min_new_tokens=-1), "min_new_tokens"),
    ("min_new_tokens above max", _with(min_new_tokens=9, max_new_tokens=8), "min_new_tokens"),
    ("min_new_tokens above default max", _with(min_new_tokens=129), "min_new_tokens"),
    ("temperature negative", _with(temperature=-0.1), "temperature"),
    ("temperature above 2", _with(temperature=2.1), "temperature"),
    ("temperature too near zero", _with(temperature=0.001), "temperature"),
    ("temperature string", _with(temperature="1"), "temperature"),
    ("temperature bool", _with(temperature=True), "temperature"),
    ("temperature nan", _raw('"temperature": NaN'), "temperature"),
    ("temperature infinity", _raw('"temperature": Infinity'), "temperature"),
    ("temperature minus infinity", _raw('"temperature": -Infinity'), "temperature"),
    ("temperature overflows", _raw('"temperature": 1e999'), "temperature"),
    ("temperature of 400 digits", _with(temperature=10**400), "temperature"),
    ("top_k zero", _with(top_k=0), "top_k"),
    ("top_k minus one", _with(top_k=-1), "top_k"),
    ("top_k float", _with(top_k=1.5), "top_k"),
    ("top_k beyond the vocabulary", _with(top_k=10**7), "top_k"),
    ("top_k of 400 digits", _with(top_k=10**400), "top_k"),
    ("top_p zero", _with(top_p=0), "top_p"),
    ("top_p above 1", _with(top_p=1.01), "top_p"),
    ("top_p nan", _raw('"top_p": NaN'), "top_p"),
    ("min_p negative", _with(min_p=-0.01), "min_p"),
    ("min_p above 1", _with(min_p=1.5), "min_p"),
    ("greedy with top_k", _with(temperature=0, top_k=5), "top_k"),
    ("greedy with top_p", _with(temperature=0, top_p=0.5), "top_p"),
    ("greedy with min_p", _with(temperature=0, min_p=0.5), "min_p"),
    ("greedy with seed", _with(seed=1), "seed"),
    ("greedy with n", _with(n=2), "n"),
    ("repetition_penalty zero", _with(repetition_penalty=0), "repetition_penalty"),
    ("repetition_penalty above 10", _with(repetition_penalty=11), "repetition_penalty"),
    ("presence_penalty below -2", _with(presence_penalty=-2.5), "presence_penalty"),
    ("frequency_penalty above 2", _with(frequency_penalty=2.5), "frequency_penalty"),
    ("seed negative", _with(seed=-1, temperature=1), "seed"),
    ("seed of 65 bits", _with(seed=2**64, temperature=1), "seed"),
    ("seed float", _with(seed=1.0, temperature=1), "seed"),
    ("stop empty string", _with(stop=""), "stop"),
    ("stop list with empty", _with(stop=["a", ""]), "stop"),
    ("stop number", _with(stop=7), "stop"),
    ("stop nul", _with(stop="\0"), "stop"),
    ("stop lone surrogate", _raw('"stop": ["\\udfff"]'), "stop"),
    ("too many stop strings", _with(stop=list("abcdefghi")), "stop"),
    ("stop string too long", _with(stop="x" * 129), "stop"),
    ("n zero", _with(n=0), "n"),
    ("n negative", _with(n=-3), "n"),
    ("n above the limit", _with(n=17, temperature=1), "n"),
    ("n beyond everything", _with(n=10**18, temperature=1), "n"),
    ("n of 4,300 digits", HUGE_N, "n"),
    ("n of 400 digits", _with(n=10**400, temperature=1), "n"),
    ("prompts times n beyond everything", _with(prompt=["a"] * 32, n=16, temperature=1), "n"),
    ("logprobs negative", _with(logprobs=-1), "logprobs"),
    ("logprobs above 20", _with(logprobs=21), "logprobs"),
    ("logprobs bool", _with(logprobs=True), "logprobs"),
    ("ignore_eos number", _with(ignore_eos=1), "ignore_eos"),
    ("ignore_eos string", _with(ignore_eos="false"), "ignore_eos"),
    ("stream string", _with(stream="yes"), "stream"),
    ("stop list with null", _with(stop=[None]), "stop"),
    ("unknown field null", _with(colour=None), "colour"),
    ("return_token_ids number", _with(return_token_ids=0), "return_token_ids"),
    ("use_chat_template string", _with(use_chat_template="true"), "use_chat_template"),
    ("system without chat template", _with(system="Be brief."), "system"),
    ("system empty", _with(system="", use_chat_template=True), "system"),
    ("system control", _with(system="\x07", use_chat_template=True), "system"),
    ("system lone surrogate", LONE_SURROGATE_SYSTEM, "system"),
    ("system list", _with(system=["Be brief."], use_chat_template=True), "system"),
    ("stream with bad field", _with(stream=True, top_k=0), "top_k"),
    ("stream beyond context window", _with(stream=True, max_new_tokens=10**9), "max_new_tokens"),
]

SURROGATE_NAMES: list[tuple[str, bytes, str]] = [
    ("unknown field, lone surrogate", _raw('"\\ud800": 1'), "?"),
    ("unknown field, surrogate inside", _raw('"top\\udfff": 1'), "top?"),
]

BAD_BODIES: list[tuple[str, bytes, int, str | None]] = [
    *((name, body, 400, None) for name, body in NOT_JSON),
    *((name, body, 422, None) for name, body in NOT_AN_OBJECT),
    *((name, body, 422, param) for name, body, param in WRONG_FIELD),
    *((name, body, 422, param) for name, body, param in SURROGATE_NAMES),
]
