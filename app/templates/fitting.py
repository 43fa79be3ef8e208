"""As many examples as fit into the context window; each is shown whole or not at all."""

from collections.abc import Awaitable, Callable


async def most_shots_that_fit(
    num_shots: int, tokens_of: Callable[[int], Awaitable[list[int]]], max_tokens: int
) -> tuple[int, list[int]]:
    """The most shots, up to `num_shots`, whose prompt has `max_tokens` at most, and its tokens.

    `tokens_of` makes the prompt with so many shots; more shots are more tokens. The result is over
    `max_tokens` only where even zero shots are.
    """
    tokens = await tokens_of(num_shots)
    if len(tokens) <= max_tokens or num_shots == 0:
        return num_shots, tokens
    fitting, too_many, tokens = 0, num_shots, await tokens_of(0)
    while too_many - fitting > 1 and len(tokens) <= max_tokens:
        middle = (fitting + too_many) // 2
        tried = await tokens_of(middle)
        if len(tried) <= max_tokens:
            fitting, tokens = middle, tried
        else:
            too_many = middle
    return fitting, tokens
