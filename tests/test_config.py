"""Mount options: what they accept, and the sentence for what they do not."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapefs.config import GIB, KIB, MIB, Config, option_names, parse_bytes, parse_options
from tapefs.errors import ExitCode, UsageError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1000000", 1_000_000),
        ("512K", 512 * KIB),
        ("512k", 512 * KIB),
        ("64M", 64 * MIB),
        ("4G", 4 * GIB),
        ("4GiB", 4 * GIB),
        ("2TB", 2048 * GIB),
        (" 1M ", MIB),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "4X", "-1", "1.5G", "G", "4 G B", "0x10", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size; write it like"):
        parse_bytes(text)


@given(st.integers(0, 2**40), st.sampled_from(["", "K", "M", "G", "T"]))
def test_any_number_with_any_unit(number: int, unit: str) -> None:
    factor = 1024 ** ["", "K", "M", "G", "T"].index(unit)
    assert parse_bytes(f"{number}{unit}") == number * factor


def test_nothing_given_means_the_defaults() -> None:
    assert parse_options("") == parse_options(",,") == Config()


def test_options_of_every_kind() -> None:
    config = parse_options(
        "fsync=tape,spool=1G,spool_high_water=0.5,settle=0.25,record_queue=4,allow_other,"
        "burst=64M,capacity=80G,segment_members_max=10"
    )
    assert config == Config(
        fsync="tape",
        spool_bytes=GIB,
        spool_high_water=0.5,
        settle_s=0.25,
        record_queue_count=4,
        allow_other=True,
        burst_bytes=64 * MIB,
        capacity_bytes=80 * GIB,
        segment_members_max=10,
    )


def test_the_last_one_wins() -> None:
    assert parse_options("settle=1,settle=3").settle_s == 3.0


def test_ignored_words_are_skipped_others_are_not() -> None:
    assert parse_options("ro,settle=1", frozenset({"ro"})).settle_s == 1.0
    with pytest.raises(UsageError, match="unknown mount option 'ro'"):
        parse_options("ro")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sploo=1G", "unknown mount option 'sploo'; known options: allow_other, "),
        ("spool", "mount option 'spool' needs a value"),
        ("spool=lots", "'lots' is not a size"),
        ("spool=1M", "spool must be at least 16M"),
        ("fsync=never", "fsync takes 'spool' or 'tape', not 'never'"),
        ("verify=always", "verify takes 'off' or 'after-write', not 'always'"),
        ("settle=soon", "mount option 'settle' takes a number, not 'soon'"),
        ("settle=nan", "mount option 'settle' must be a number that is not negative"),
        ("settle=-1", "mount option 'settle' must be a number that is not negative"),
        ("record_queue=1.5", "mount option 'record_queue' takes a number"),
        ("spool_high_water=1", "spool_high_water must lie between 0 and 1"),
        ("segment_max=1M", "segment_max must be at least 4M"),
    ],
)
def test_each_mistake_has_its_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options(text)
    assert str(caught.value).startswith(sentence) or sentence in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE


def test_every_field_has_an_option_of_its_own_without_its_unit() -> None:
    names = option_names()
    assert sorted(names.values()) == sorted(field.name for field in dataclasses.fields(Config))
    assert not [name for name in names if name.endswith(("_bytes", "_s", "_count"))]


def answer_to(text: str) -> Config | str:
    """What the option string `text` is answered with."""
    try:
        return parse_options(text)
    except UsageError as error:
        return str(error)


_NAMES = st.sampled_from([*option_names(), "nonsense"])
_VALUES = st.one_of(st.text(max_size=8), st.integers().map(str), st.sampled_from(["1G", "tape"]))


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=4))
def test_any_text_is_a_config_or_one_sentence(options: list[tuple[str, str]]) -> None:
    answer = answer_to(",".join(f"{name}={value}" for name, value in options))
    assert isinstance(answer, Config) or len(answer) > 20
