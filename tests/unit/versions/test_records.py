"""What a name points to after each change; no disk, no engine."""

from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest

from app.engine.effect import Effect
from app.errors import AdapterConflict, AdapterNotFound, InvalidRequest
from app.versions.records import (
    Entry,
    Record,
    Watched,
    claimed,
    find_version,
    find_weights,
    folder_gone,
    measured,
    next_to_promote,
    older_version,
    promoted,
    published,
    put_beside,
    removed,
    restored,
    rolled_back,
    shadowed,
    shared,
)
from app.versions.shadows import Shadow
from app.versions.splits import Split

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NOT_FOUND = partial(AdapterNotFound, param="version")
CONFLICT = partial(AdapterConflict, param="version")


def digest(letter: str) -> str:
    """Of a version, which has one letter here."""
    return f"{ord(letter):064x}"


def entry(letter: str, source: str = "upload") -> Entry:
    return Entry(digest(letter), NOW, source)


def publish(
    record: Record,
    letters: str,
    *,
    source: str = "upload",
    kind: str = "lora",
    in_use: Collection[str] = "",
) -> Record:
    """Publish one version after the other; three are kept."""
    for letter in letters:
        record = published(
            record,
            entry(letter, source),
            kind=kind,
            retention=3,
            is_in_use={digest(each) for each in in_use}.__contains__,
        )
    return record


def named(letters: str, source: str = "upload") -> Record:
    return publish(Record("summary"), letters, source=source)


def beside(record: Record, letters: str, in_use: Collection[str] = "") -> Record:
    """Put one version after the other beside the live one; three are kept."""
    for letter in letters:
        record = put_beside(
            record,
            entry(letter),
            retention=3,
            is_in_use={digest(each) for each in in_use}.__contains__,
        )
    return record


def split(record: Record, letters: str) -> Record:
    """Share a name among versions, each of the same weight."""
    return shared(record, Split({digest(letter): 1 for letter in letters}))


def with_shadow(record: Record, letter: str) -> Record:
    return shadowed(record, Shadow(digest(letter), 10, NOW))


def back(record: Record) -> Record:
    return rolled_back(record, older_version(record, CONFLICT))


def shown(record: Record) -> str:
    """The versions from new to old, with the live one in brackets."""
    letters = [chr(int(each, 16)) for each in record.digests]
    return "".join(f"[{letter}]" if digest(letter) == record.live else letter for letter in letters)


# What a version changes.


EFFECT = Effect(0.25, changed=True)


def test_the_effect_is_that_of_the_live_version() -> None:
    record = measured(named("ab"), digest("b"), EFFECT)
    assert [entry.effect for entry in record.history] == [EFFECT, None]
    assert record.effect == EFFECT
    assert back(record).effect is None
    assert replace(record, live=None).effect is None


def test_the_effect_stays_with_its_version() -> None:
    record = publish(measured(named("a"), digest("a"), EFFECT), "b")
    assert record.effect is None
    assert back(record).effect == EFFECT
    assert claimed(back(record), "upload", None).effect == EFFECT


# Publishing.


def test_what_was_live_comes_below_the_new_version() -> None:
    assert shown(named("abc")) == "[c]ba"


def test_so_many_versions_stay() -> None:
    assert shown(named("abcd")) == "[d]cb"


def test_a_version_in_use_is_not_trimmed() -> None:
    record = publish(named("abc"), "de", in_use="a")
    assert shown(record) == "[e]dca"
    assert shown(publish(record, "f")) == "[f]ed"


def test_an_old_version_again_is_the_new_one() -> None:
    assert shown(publish(named("ab"), "a")) == "[a]b"


def test_what_was_rolled_back_from_sinks_to_the_bottom() -> None:
    assert shown(publish(back(named("ab")), "c")) == "[c]ab"


def test_what_was_rolled_back_from_is_trimmed_first() -> None:
    assert shown(publish(back(named("abc")), "d")) == "[d]ba"


def test_another_kind_begins_a_history_of_its_own() -> None:
    record = publish(named("ab"), "c", kind="soft_prompt")
    assert (shown(record), record.kind) == ("[c]", "soft_prompt")


def test_what_is_published_is_damaged_no_more() -> None:
    assert publish(Record("summary", damaged="lost"), "a").damaged is None


def test_what_is_watched_stays_unless_it_is_new() -> None:
    record = replace(named("a"), watched=Watched("1"))
    assert publish(record, "b").watched == Watched("1")


# The live version is published again.


def test_what_an_operator_publishes_again_is_the_operators() -> None:
    record = claimed(named("a", source="adapter_dir"), "upload", None)
    assert record.history[0].source == "upload"
    assert folder_gone(record).live == digest("a")


def test_what_the_folder_publishes_again_stays_the_operators() -> None:
    record = claimed(named("a"), "adapter_dir", Watched("1", digest("a")))
    assert record.history[0].source == "upload"
    assert record.watched == Watched("1", digest("a"))


# Rolling back.


def test_rolling_back_goes_down_the_list() -> None:
    record = back(named("abc"))
    assert shown(record) == "c[b]a"
    record = back(record)
    assert shown(record) == "cb[a]"
    with pytest.raises(AdapterConflict) as raised:
        back(record)
    assert raised.value.message == (
        "summary has no version older than the live one: name the one to go to in version, or add "
        "it again"
    )
    assert raised.value.param == "version"


def test_a_rollback_after_a_publish_goes_to_what_was_live_before() -> None:
    assert shown(back(publish(back(named("ab")), "c"))) == "c[a]b"


def test_rolling_back_a_retired_name_goes_to_what_was_live_last() -> None:
    record = folder_gone(back(named("abc", source="template_dir")))
    assert (shown(record), shown(back(record))) == ("bac", "[b]ac")


# Finding a version.


def test_a_version_by_its_first_digits() -> None:
    record = Record("summary", history=(Entry("ab" * 32, NOW, "x"), Entry("abc" * 20, NOW, "x")))
    assert find_version(record, "ababab", NOT_FOUND) == "ab" * 32
    assert find_version(record, "ab" * 32, NOT_FOUND) == "ab" * 32
    with pytest.raises(AdapterNotFound) as raised:
        find_version(record, "123456", NOT_FOUND)
    assert raised.value.message == (
        "summary has no version 123456: it has abababababab, abcabcabcabc"
    )


@pytest.mark.parametrize("version", ["", "abcde", "ABCDEF", "live", "f" * 65, "a@b"])
def test_not_a_version(version: str) -> None:
    with pytest.raises(AdapterNotFound) as raised:
        find_version(named("a"), version, NOT_FOUND)
    assert raised.value.message == (
        "a version of summary is its digest, or at least six of its first digits: "
        f"it has {digest('a')[:12]}"
    )


def test_an_ambiguous_version() -> None:
    with pytest.raises(AdapterNotFound) as raised:
        find_version(named("ab"), "000000", NOT_FOUND)
    assert raised.value.message == "several versions of summary begin with 000000: give more digits"


def test_a_version_of_a_name_without_any() -> None:
    with pytest.raises(AdapterNotFound, match="summary has no version abcdef: it has none"):
        find_version(Record("summary"), "abcdef", NOT_FOUND)


# What goes.


def test_a_removed_name_remembers_what_lay_in_the_folder() -> None:
    record = removed(replace(named("a"), watched=Watched("1", rejected="too large")))
    assert record == Record("summary", watched=Watched("1"))
    assert not record.is_visible
    assert not record.is_empty
    assert removed(named("a")).is_empty


def test_what_came_from_the_folder_retires_with_it() -> None:
    record = folder_gone(replace(named("ab", source="adapter_dir"), watched=Watched("1")))
    assert (shown(record), record.live, record.watched) == ("ba", None, None)


def test_what_an_operator_made_live_outlasts_the_folder() -> None:
    record = publish(named("a", source="adapter_dir"), "b")
    assert shown(folder_gone(replace(record, watched=Watched("1")))) == "[b]a"


# What is read from disk.


def test_a_version_that_is_lost_leaves_the_history() -> None:
    record = restored(named("abc"), {digest("a"), digest("c")}.__contains__)
    assert (shown(record), record.rejected) == ("[c]a", None)


def test_a_live_version_that_is_lost_is_told_of() -> None:
    record = replace(named("abc"), watched=Watched("1", digest("c")))
    record = restored(record, {digest("a"), digest("b")}.__contains__)
    assert (shown(record), record.live, record.watched) == ("ba", None, None)
    assert record.rejected == (
        f"its live version {digest('c')[:12]} is damaged in the store: add it again"
    )
    assert rolled_back(record, digest("b")).rejected is None


# Several versions at once.


TRIED = with_shadow(split(beside(named("a"), "bc"), "ab"), "c")


def test_what_is_put_beside_the_live_version_is_not_live() -> None:
    record = beside(named("ab"), "c")
    assert shown(record) == "c[b]a"
    assert shown(back(record)) == "cb[a]"
    assert shown(beside(record, "a")) == "ac[b]"


def test_what_is_put_beside_trims_what_nothing_runs_on() -> None:
    assert shown(beside(named("ab"), "cd")) == "dc[b]"
    assert shown(beside(named("ab"), "cdefg", in_use="a")) == "gfe[b]a"
    assert shown(beside(TRIED, "defg")) == "gfecb[a]"


def test_requests_run_on_the_live_version_on_those_of_a_split_and_on_the_shadow() -> None:
    assert named("ab").served == {digest("b")}
    assert TRIED.served == {digest("a"), digest("b"), digest("c")}
    assert Record("summary").served == frozenset()


@pytest.mark.parametrize(
    "change",
    [
        partial(publish, letters="d"),
        partial(rolled_back, digest=digest("a")),
        partial(promoted, digest=digest("b")),
        partial(promoted, digest=digest("a")),
        removed,
        lambda record: folder_gone(claimed_by_the_folder(record)),
    ],
)
def test_what_changes_the_live_version_ends_split_and_shadow(
    change: Callable[[Record], Record],
) -> None:
    record = change(TRIED)
    assert (record.split, record.shadow) == (None, None)


def claimed_by_the_folder(record: Record) -> Record:
    history = tuple(replace(entry, source="adapter_dir") for entry in record.history)
    return replace(record, history=history)


def test_a_rollback_after_a_promotion_goes_to_what_was_live_before() -> None:
    record = promoted(beside(named("ab"), "c"), digest("c"))
    assert shown(record) == "[c]ba"
    record = promoted(named("abc"), digest("a"))
    assert (shown(record), shown(back(record))) == ("[a]cb", "a[c]b")


def test_the_other_version_of_a_split_is_the_next_to_promote() -> None:
    assert next_to_promote(TRIED, CONFLICT) == digest("b")
    assert next_to_promote(replace(TRIED, split=None), CONFLICT) == digest("c")


@pytest.mark.parametrize(
    ("record", "number"),
    [(named("ab"), "no version"), (split(named("abc"), "abc"), "several versions")],
)
def test_no_next_to_promote(record: Record, number: str) -> None:
    with pytest.raises(AdapterConflict) as raised:
        next_to_promote(record, CONFLICT)
    assert raised.value.message.startswith(
        f"summary has {number} beside the live one in a split: name the one to promote in version"
    )


LETTERS = Record(
    "summary",
    live="aa" * 32,
    history=tuple(Entry(letter * 64, NOW, "upload") for letter in "cba"),
)


def test_the_versions_of_a_split_by_their_first_digits() -> None:
    weights = find_weights(LETTERS, {"aaaaaa": 90, "b" * 64: 10}, NOT_FOUND)
    assert weights == {"a" * 64: 90, "b" * 64: 10}


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"aaaaaa": 1, "aaaaaaa": 1}, "two of versions are the same: give each version once"),
        (
            {"aaaaaa": 1},
            (
                "a split is among several versions: name another of summary besides; it has "
                "cccccccccccc, bbbbbbbbbbbb, aaaaaaaaaaaa"
            ),
        ),
        ({}, "a split is among several versions"),
        (
            {"bbbbbb": 1, "cccccc": 1},
            (
                "a split of summary has its live version, aaaaaaaaaaaa, which a rollback goes back "
                "to: give it a weight, or promote another version first"
            ),
        ),
    ],
)
def test_no_split(versions: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        find_weights(LETTERS, versions, NOT_FOUND)
    assert raised.value.message.startswith(message)
    assert raised.value.param == "versions"


def test_a_split_with_an_unknown_version() -> None:
    with pytest.raises(AdapterNotFound, match="summary has no version dddddd"):
        find_weights(LETTERS, {"aaaaaa": 1, "dddddd": 1}, NOT_FOUND)


def test_a_name_that_is_not_served_has_no_split() -> None:
    with pytest.raises(InvalidRequest, match="has its live version, which a rollback goes back to"):
        find_weights(replace(LETTERS, live=None), {"aaaaaa": 1, "bbbbbb": 1}, NOT_FOUND)


@pytest.mark.parametrize("lost", "bc")
def test_a_version_that_is_lost_ends_split_and_shadow(lost: str) -> None:
    record = restored(TRIED, lambda each: each != digest(lost))
    assert (record.live, record.split, record.shadow) == (digest("a"), None, None)
    assert record.rejected == (
        f"{digest(lost)[:12]}, which had a part of its requests, is damaged in the store: its live "
        "version serves alone; add the other again"
    )
    assert beside(record, lost).rejected is None


def test_a_live_version_that_is_lost_ends_split_and_shadow() -> None:
    record = restored(TRIED, lambda each: each != digest("a"))
    assert (record.live, record.split, record.shadow) == (None, None, None)
    assert record.rejected == (
        f"its live version {digest('a')[:12]} is damaged in the store: add it again"
    )


def test_what_is_whole_stays_shared() -> None:
    assert restored(TRIED, lambda _: True) == TRIED
