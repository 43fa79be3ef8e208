"""What a name points to after each change; no disk, no engine."""

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest

from app.engine.effect import Effect
from app.errors import AdapterConflict, AdapterNotFound
from app.versions.records import (
    Entry,
    Record,
    Watched,
    claimed,
    find_version,
    folder_gone,
    measured,
    older_version,
    published,
    removed,
    restored,
    rolled_back,
)

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


def back(record: Record) -> Record:
    return rolled_back(record, older_version(record, CONFLICT))


def shown(record: Record) -> str:
    """The versions from new to old, with the live one in brackets."""
    letters = [chr(int(each, 16)) for each in record.digests]
    return "".join(f"[{letter}]" if digest(letter) == record.live else letter for letter in letters)


# What a version changes.


EFFECT = Effect(0.25, changed=True)


def test_the_effect_is_that_of_the_live_version() -> None:
    record = measured(named("ab"), EFFECT)
    assert [entry.effect for entry in record.history] == [EFFECT, None]
    assert record.effect == EFFECT
    assert back(record).effect is None
    assert replace(record, live=None).effect is None


def test_the_effect_stays_with_its_version() -> None:
    record = publish(measured(named("a"), EFFECT), "b")
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
