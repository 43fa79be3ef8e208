"""What `softserve top` shows: one frame, made from the last readings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from app.cli.readings import Interval, Reading, Values

# From this width on, adapters and keys stand side by side.
WIDE = 110
MAX_ROWS = 8
BAR_WIDTH = 12
SPARKS = "▁▂▃▄▅▆▇█"
STATES = {
    "open": ("ready", "bold green"),
    "starting": ("starting", "yellow"),
    "draining": ("draining", "yellow"),
    "stalled": ("its engine does not answer", "bold red"),
    "dead": ("its engine is dead", "bold red"),
}
TTFT = "softserve_time_to_first_token_seconds"
ITL = "softserve_inter_token_latency_seconds"
QUANTILES = {"p50": 0.5, "p95": 0.95}
KINDS = ("adapter", "soft_prompt", "key")


@dataclass(frozen=True, slots=True)
class View:
    """What there is to show. `tokens_out` are the rates of the last seconds, the newest last.

    `interval` is None before the second reading, `trouble` a sentence while there is no answer.
    """

    url: str
    model: str | None
    interval: Interval | None
    tokens_out: Sequence[float]
    trouble: str | None = None


def frame(view: View, width: int) -> RenderableType:
    """The whole view."""
    parts: list[RenderableType] = [_heading(view), Rule(style="dim")]
    if view.trouble is not None:
        parts.append(Text(view.trouble, style="red"))
    elif view.interval is None:
        parts.append(Text("one moment: a rate needs two readings", style="dim"))
    else:
        parts.append(_numbers(view.interval, view.tokens_out))
        parts.append(_tables(view.interval, side_by_side=width >= WIDE))
    return Group(*parts)


def figures(view: View) -> dict[str, Any]:
    """The same for a program: rates a second, times in seconds."""
    assert view.interval is not None, "there were two readings"
    interval, now = view.interval, view.interval.after
    return {
        "url": view.url,
        "model": view.model,
        "state": _current_state(now),
        "completion_tokens": interval.rate("softserve_completion_tokens_total"),
        "prompt_tokens": interval.rate("softserve_prompt_tokens_total"),
        "cached_tokens": interval.rate("softserve_cached_tokens_total"),
        "requests": {
            outcome: rate
            for (outcome,), rate in interval.rates("softserve_requests_total", ("outcome",)).items()
        },
        "ttft": _quantiles(interval, TTFT),
        "itl": _quantiles(interval, ITL),
        "running": now.total("softserve_sequences_running"),
        "waiting": now.total("softserve_sequences_waiting"),
        "kv_cache_usage": now.total("vllm:kv_cache_usage_perc"),
        **{kind: [asdict(row) for row in _rows(interval, kind)] for kind in KINDS},
    }


def _quantiles(interval: Interval, histogram: str) -> dict[str, float | None]:
    return {name: interval.quantile(part, histogram) for name, part in QUANTILES.items()}


def _current_state(now: Reading) -> str:
    states = now.by("softserve_state", ("state",))
    return next((state for (state,), value in states.items() if value), "unknown")


def _heading(view: View) -> Table:
    line = Table.grid(expand=True)
    line.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    line.add_column(justify="right", no_wrap=True)
    name = Text.assemble(("softserve", "bold"), f"  {view.model or ''}  ", (view.url, "dim"))
    line.add_row(name, _state(view))
    return line


def _state(view: View) -> Text:
    if view.trouble is not None:
        return Text("● no answer", style="bold red")
    if view.interval is None:
        return Text("")
    current = _current_state(view.interval.after)
    word, style = STATES.get(current, (current, "yellow"))
    return Text(f"● {word}", style=style)


def _numbers(interval: Interval, tokens_out: Sequence[float]) -> RenderableType:
    halves = Table.grid(padding=(0, 2), expand=True)
    halves.add_column(ratio=1)
    halves.add_column(ratio=1)
    halves.add_row(_traffic(interval, tokens_out), _engine(interval))
    return halves


def _traffic(interval: Interval, tokens_out: Sequence[float]) -> RenderableType:
    tokens_in = interval.rate("softserve_prompt_tokens_total")
    cached = interval.rate("softserve_cached_tokens_total")
    outcomes = interval.rates("softserve_requests_total", ("outcome",))
    table = _grid()
    table.add_row(
        "tokens/s out",
        _number(interval.rate("softserve_completion_tokens_total")),
        Text(_sparks(tokens_out), style="cyan", no_wrap=True),
    )
    table.add_row(
        "tokens/s in",
        _number(tokens_in),
        Text(f"{cached / tokens_in:.0%} cached" if tokens_in else "", style="dim"),
    )
    table.add_row("requests/s", _number(sum(outcomes.values())), _outcomes(outcomes))
    return table


def _outcomes(outcomes: Values) -> Text:
    """Those that are not as they should be."""
    others = {outcome: rate for (outcome,), rate in outcomes.items() if outcome != "success"}
    parts = [
        Text(f"{_number(rate)} {outcome}", style="red" if outcome == "failed" else "yellow")
        for outcome, rate in sorted(others.items(), key=lambda each: -each[1])
        if rate
    ]
    return Text("  ").join(parts)


def _engine(interval: Interval) -> RenderableType:
    now = interval.after
    table = _grid()
    for label, histogram in (("first token", TTFT), ("inter-token", ITL)):
        middle, high = _quantiles(interval, histogram).values()
        table.add_row(label, _duration(middle), Text(f"p95 {_duration(high)}", style="dim"))
    table.add_row(
        "completions",
        _number(now.total("softserve_sequences_running")),
        Text(f"{_number(now.total('softserve_sequences_waiting'))} waiting", style="dim"),
    )
    used = now.total("vllm:kv_cache_usage_perc")
    bar = ProgressBar(total=1.0, completed=used, width=BAR_WIDTH, complete_style="cyan")
    table.add_row("KV cache", f"{used:.0%}", bar)
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, min_width=8)
    table.add_column(no_wrap=True, overflow="ellipsis")
    return table


def _tables(interval: Interval, *, side_by_side: bool) -> RenderableType:
    adapters = _busiest(interval, "adapter", ("adapter", "soft_prompt"))
    keys = _busiest(interval, "key", ("key",))
    if not side_by_side:
        return Group(adapters, keys)
    both = Table.grid(padding=(0, 2), expand=True)
    both.add_column(ratio=3)
    both.add_column(ratio=2)
    both.add_row(adapters, keys)
    return both


def _busiest(interval: Interval, title: str, kinds: Sequence[str]) -> Table:
    """Those with the most tokens a second come first; idle ones are left out."""
    table = Table(box=SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(title, ratio=1, no_wrap=True, overflow="ellipsis")
    for column in ("out/s", "in/s", "in flight", "TTFT p95"):
        table.add_column(column, justify="right", no_wrap=True, min_width=6)
    rows = [row for kind in kinds for row in _rows(interval, kind)]
    rows.sort(key=lambda row: (-row.tokens_out, -row.tokens_in, row.name))
    for row in rows[:MAX_ROWS]:
        table.add_row(
            row.name,
            _number(row.tokens_out),
            _number(row.tokens_in),
            _number(row.in_flight),
            _duration(row.first_token),
        )
    if len(rows) > MAX_ROWS:
        table.add_row(Text(f"and {len(rows) - MAX_ROWS} more", style="dim"))
    elif not rows:
        table.add_row(Text("none is busy", style="dim"))
    return table


@dataclass(frozen=True, slots=True)
class Row:
    """What one adapter, or one key, does; `first_token` is the 95th percentile."""

    name: str
    tokens_out: float
    tokens_in: float
    in_flight: float
    first_token: float | None


def _rows(interval: Interval, kind: str) -> list[Row]:
    names = ("name", "version")
    tokens_out = interval.rates("softserve_named_completion_tokens_total", names, kind=kind)
    tokens_in = interval.rates("softserve_named_prompt_tokens_total", names, kind=kind)
    in_flight = interval.after.by("softserve_named_requests_in_flight", names, kind=kind)
    return [
        Row(
            f"{name}@{version}" if version else name,
            tokens_out[name, version],
            tokens_in[name, version],
            in_flight[name, version],
            interval.quantile(
                0.95,
                "softserve_named_time_to_first_token_seconds",
                kind=kind,
                name=name,
                version=version,
            ),
        )
        for name, version in {*tokens_out, *in_flight}
        if tokens_out[name, version] or in_flight[name, version]
    ]


def _sparks(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    highest = max(values, default=0.0) or 1.0
    return "".join(SPARKS[round(value / highest * (len(SPARKS) - 1))] for value in values)


def _number(value: float) -> str:
    return f"{value:,.1f}" if value and value < 100 and value != int(value) else f"{value:,.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:,.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"
