"""What is asked of a server: prompts and completions of varying lengths, in the order they arrive.

Of one length, all requests would go in step: sent in one instant, answered in one instant, and
whichever server is good at waves would win.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from loadtest.prompts import Tokenize, make_prompt

# Little's law: at the rate of the answers, an idle server would fill up in the time of a request;
# at four times that, in a quarter of it. From then on somebody waits for every client.
ARRIVALS_PER_ANSWER = 4
WARM_UP_REQUESTS_PER_CLIENT = 2
MIN_WARM_UP_REQUESTS = 8

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how many tokens it has and its completion is to have."""

    prompt: str
    num_prompt_tokens: int
    num_new_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of at most `num_clients` at a time.

    They arrive as a Poisson process of `requests_per_second`; infinite: all at once.
    """

    num_clients: int
    requests: list[Request]
    requests_per_second: float = math.inf


@dataclass(frozen=True, slots=True)
class Workload:
    """Makes loads; the same ones whenever it is asked again. Ranges of tokens include both ends."""

    tokenize: Tokenize
    prompt_tokens: Range
    new_tokens: Range

    def warm_up(self, num_clients: int) -> Load:
        """A short load, of other prompts than those that are measured."""
        num_requests = max(MIN_WARM_UP_REQUESTS, WARM_UP_REQUESTS_PER_CLIENT * num_clients)
        return Load(num_clients, self.of(num_requests, f"warm-up {num_clients}"))

    def lasting(self, seconds: float, num_clients: int, peak_tokens_per_second: float) -> Load:
        """A load for at least `seconds` of a server that never generates more than the peak."""
        requests: list[Request] = []
        num_tokens = 0
        for request in self._requests(f"measured {num_clients}"):
            requests.append(request)
            num_tokens += request.num_new_tokens
            if num_tokens >= seconds * peak_tokens_per_second:
                break
        answers_per_second = peak_tokens_per_second * len(requests) / num_tokens
        return Load(num_clients, requests, ARRIVALS_PER_ANSWER * answers_per_second)

    def of(self, num_requests: int, seed: str) -> list[Request]:
        """So many requests; others for another seed."""
        return list(islice(self._requests(seed), num_requests))

    def _requests(self, seed: str) -> Iterator[Request]:
        """Without end; no two begin alike, so that no prefix is found in a cache."""
        source = random.Random(seed)  # noqa: S311 (repeatable, not secret)
        while True:
            num_prompt_tokens = source.randint(*self.prompt_tokens)
            prompt = make_prompt(num_prompt_tokens, self.tokenize, source)
            yield Request(prompt, num_prompt_tokens, source.randint(*self.new_tokens))
