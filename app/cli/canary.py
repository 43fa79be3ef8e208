"""`split`, `promote` and `shadow`: versions that are tried, of adapters and of templates alike."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer

from app.cli.connection import DEFAULT_URL, Json, Key, Url, Version, connected, print_json
from app.cli.console import fail
from softserve.client import Client
from softserve.client.connection import Connection
from softserve.client.operations import Names
from softserve.schema.versions import (
    NameFields,
    ShadowOut,
    SplitFields,
    SplitOut,
    Sticky,
    Wait,
    short,
)

SHARE = re.compile(r"([0-9a-f]+)=([0-9]+)")

Name = Annotated[str, typer.Argument(help="Its name.")]
Live = Annotated[
    bool,
    typer.Option(
        "--live/--no-live",
        help="Whether it is live at once, or beside the live version, for `split` and `shadow`.",
    ),
]
WaitAll = Annotated[
    bool,
    typer.Option("--wait-all", help="Wait until every replica of the server's origin serves it."),
]

# The adapters, or the templates, of a server.
Family = Callable[[Client], Names[Connection, Any]]


def add_commands(cli: typer.Typer, family: Family) -> None:
    """Add them to the commands of a family."""

    def tell(answer: NameFields, *, as_json: bool) -> None:
        if as_json:
            print_json(answer)
        else:
            typer.echo("\n".join([_live(answer), *tried(answer)]))

    @cli.command()
    def split(
        name: Name,
        versions: Annotated[
            list[str], typer.Argument(help="VERSION=WEIGHT, of the live version and of others.")
        ],
        sticky: Annotated[
            Sticky, typer.Option(help=SplitFields.model_fields["sticky"].description)
        ] = "none",
        as_json: Json = False,
        url: Url = DEFAULT_URL,
        key: Key = None,
    ) -> None:
        """Share its requests among versions, by weight; `promote` or `rollback` ends it."""
        weights = _weights(versions)
        with connected(url, key) as client:
            tell(family(client).split(name, weights, sticky=sticky), as_json=as_json)

    @cli.command()
    def promote(
        name: Name,
        version: Version = None,
        as_json: Json = False,
        url: Url = DEFAULT_URL,
        key: Key = None,
    ) -> None:
        """Make the version live that was tried, in a split or as a shadow."""
        with connected(url, key) as client:
            tell(family(client).promote(name, version), as_json=as_json)

    @cli.command()
    def shadow(
        name: Name,
        version: Annotated[
            str | None, typer.Argument(help="A digest, or at least six of its first digits.")
        ] = None,
        percent: Annotated[
            float, typer.Option(help="Of the requests that the live version answers.")
        ] = 10.0,
        end: Annotated[bool, typer.Option("--end", help="Have none any more.")] = False,
        as_json: Json = False,
        url: Url = DEFAULT_URL,
        key: Key = None,
    ) -> None:
        """Run copies of requests on a version, and compare them; nobody gets their answers."""
        if end == (version is not None):
            raise fail("give the version that gets copies of requests, or --end")
        with connected(url, key) as client:
            if version is not None:
                answer = family(client).shadow(name, version, percent=percent)
                tell(answer, as_json=as_json)
                return
            answer = family(client).end_shadow(name)
        if as_json:
            print_json(answer)
        else:
            typer.echo(f"{name} has no shadow.")


def tried(name: NameFields) -> Iterator[str]:
    """A sentence for a split, and one for a shadow."""
    if name.split is not None:
        yield _split(name, name.split)
    if name.shadow is not None:
        yield _shadow(name, name.shadow)


def beside(command: str, name: NameFields, new: str) -> str:
    """What to say of a version that was put beside the live one."""
    assert name.live is not None, "it is put beside a live one"
    return (
        f"Version {short(new)} is beside the live one of {name.name}: `softserve {command} split "
        f"{name.name} {short(name.live)}=90 {short(new)}=10` gives it a tenth of the requests."
    )


def _weights(versions: Sequence[str]) -> dict[str, int]:
    weights: dict[str, int] = {}
    for each in versions:
        share = SHARE.fullmatch(each)
        if share is None:
            raise fail(f"{each} is not VERSION=WEIGHT, as 4d967a30=90: write each version so")
        weights[share[1]] = int(share[2])
    if len(weights) < len(versions):
        raise fail("two of the versions are the same: give each once")
    return weights


def wait_for(wait_all: bool) -> Wait | None:
    return "all" if wait_all else None


def reached(name: NameFields) -> list[str]:
    """Which replicas serve a change, where it was waited for."""
    if name.replicas is None:
        return []
    num_serving = sum(each.serves for each in name.replicas)
    late = [
        f"{each.host} ({each.id}) does not yet: {each.why or 'it is on its way'}"
        for each in name.replicas
        if not each.serves
    ]
    return [f"{num_serving} of {len(name.replicas)} replicas serve it.", *late]


def _live(name: NameFields) -> str:
    return f"{name.name} is live: version {short(name.live or '')}."


def _split(name: NameFields, split: SplitOut) -> str:
    total = sum(split.versions.values())
    shares = ", ".join(
        f"{_percent(weight / total)} {short(version)}{' (live)' if version == name.live else ''}"
        for version, weight in split.versions.items()
    )
    sticky = "" if split.sticky == "none" else f"; sticky by {split.sticky}"
    return f"{name.name} is split: {shares}{sticky}."


def _shadow(name: NameFields, shadow: ShadowOut) -> str:
    results = shadow.results
    sentence = (
        f"{short(shadow.version)} is a shadow of {name.name} on {shadow.percent:g} % of its "
        f"requests: {results.completed:,} copies completed, {results.failed:,} failed, "
        f"{results.skipped:,} skipped"
    )
    if results.completed:
        sentence += (
            f"; each took {results.shadow_seconds / results.completed:.3g} s for "
            f"{results.shadow_tokens / results.completed:.3g} tokens, and live "
            f"{results.live_seconds / results.completed:.3g} s for "
            f"{results.live_tokens / results.completed:.3g}"
        )
    if results.agreement is not None:
        sentence += (
            f"; of {results.compared:,} greedy completions {results.equal:,} have the same text, "
            f"and they agree to {_percent(results.agreement)}"
        )
    return f"{sentence}."


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
