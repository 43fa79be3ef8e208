"""How much each caller has in flight, and has left of its tokens a minute.

Tokens are paid ahead: a request takes what it may need at most, and gets back what it did not use.
A caller may ask for as long as something is left, so that a request can overdraw its minute once;
the next one waits until that is paid off.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.access.caller import Caller, Quotas
from app.access.rate import Rate
from app.errors import QuotaExceeded

Clock = Callable[[], float]


class Bucket:
    """Tokens a minute (None: no limit): full at first, refilled steadily."""

    def __init__(self, per_minute: int | None, clock: Clock) -> None:
        self._clock = clock
        self._level = float(per_minute or 0)
        self._filled_at = clock()
        self.per_minute = per_minute

    def take(self, num_tokens: int) -> None:
        """A negative number gives tokens back."""
        self._fill()
        self._level -= num_tokens

    def seconds_until_some(self) -> float:
        """How long until it holds anything, if nobody takes or gives back any; 0.0: now."""
        if self.per_minute is None:
            return 0.0
        self._fill()
        return 0.0 if self._level > 0 else (1 - self._level) * 60 / self.per_minute

    def _fill(self) -> None:
        now = self._clock()
        if self.per_minute is not None:
            refill = (now - self._filled_at) * self.per_minute / 60
            self._level = min(self.per_minute, self._level + refill)
        self._filled_at = now


@dataclass(slots=True)
class Charge:
    """What a request has paid for, in tokens. `completion_tokens` are those generated so far.

    Until it `has_begun`, the engine has not seen its prompt either.
    """

    prompt_tokens: int
    max_completion_tokens: int
    completion_tokens: int = 0
    has_begun: bool = False


class Account:
    """What one caller has in flight, and has left."""

    def __init__(self, caller: Caller, clock: Clock) -> None:
        self._name = caller.name
        self._quotas = caller.quotas
        self._num_requests = 0
        self._ended = Rate(clock)
        self._clock = clock
        self._set_buckets()

    def follow(self, quotas: Quotas) -> None:
        """The quotas may have been changed; a new minute begins then."""
        if quotas != self._quotas:
            self._quotas = quotas
            self._set_buckets()

    def check(self) -> None:
        """Raises `QuotaExceeded` where one more request is over a quota."""
        most = self._quotas.max_requests_in_flight
        if most is not None and self._num_requests >= most:
            raise QuotaExceeded(
                f"the key {self._name} has {self._num_requests:,} requests in flight and may have "
                f"{most:,}: send the next when one of them has ended",
                retry_after_seconds=self._ended.seconds_for(1),
            )
        for bucket, what in ((self._prompt, "prompt"), (self._completion, "completion")):
            if wait := bucket.seconds_until_some():
                raise QuotaExceeded(
                    f"the key {self._name} has used its {bucket.per_minute:,} {what} tokens a "
                    "minute: try again later, or ask for fewer tokens at once",
                    retry_after_seconds=wait,
                )

    @contextmanager
    def charged(self, charge: Charge) -> Iterator[None]:
        """A request that is in flight meanwhile, and pays for what it may need. Raises as `check`.

        Whoever learns more of its prompt uses `correct`.
        """
        self.check()
        self._num_requests += 1
        self._prompt.take(charge.prompt_tokens)
        self._completion.take(charge.max_completion_tokens)
        try:
            yield
        finally:
            self._completion.take(charge.completion_tokens - charge.max_completion_tokens)
            if not charge.has_begun:
                self._prompt.take(-charge.prompt_tokens)
            self._num_requests -= 1
            self._ended.count(1)

    def correct(self, charge: Charge, num_prompt_tokens: int) -> None:
        """The prompts of a request turned out to have so many tokens."""
        self._prompt.take(num_prompt_tokens - charge.prompt_tokens)
        charge.prompt_tokens = num_prompt_tokens

    def _set_buckets(self) -> None:
        self._prompt = Bucket(self._quotas.prompt_tokens_per_minute, self._clock)
        self._completion = Bucket(self._quotas.completion_tokens_per_minute, self._clock)


class Accounts:
    """The accounts of all callers, by name. There are as many as keys that have ever been used."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def of(self, caller: Caller) -> Account:
        account = self._accounts.get(caller.name)
        if account is None:
            account = self._accounts[caller.name] = Account(caller, self._clock)
        account.follow(caller.quotas)
        return account
