import pytest

from core.errors import BadRequest
from core.units import format_bytes, format_rate, format_share, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GiB", 6 << 30),
        ("8G", 8 << 30),
        ("512MB", 512_000_000),
        ("1.5 gib", 3 << 29),
        ("1000", 1000),
        (" 64k ", 65536),
        ("0", 0),
        ("2TB", 2 * 10**12),
    ],
)
def test_written_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "six", "6 XB", "-1GiB", "1e9", "GiB", "6GiB/s", "inf"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="is not a size"):
        parse_size(text)


def test_rates_are_read() -> None:
    assert parse_rate("12GB/s") == 12e9
    assert parse_rate("900MB") == 9e8


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(BadRequest, match="is not a rate"):
        parse_rate("0GB/s")


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999_600, "1 MB"),
        (512e6, "512 MB"),
        (14.23e9, "14.2 GB"),
        (140e9, "140 GB"),
        (2e12, "2.0 TB"),
    ],
)
def test_sizes_in_words(count: float, words: str) -> None:
    assert format_bytes(count) == words
    assert format_rate(count) == words + "/s"


def test_parts_are_written_as_the_window_writes_them() -> None:
    assert [format_share(part) for part in (0, 0.005, 0.644, 1)] == ["0 %", "0 %", "64 %", "100 %"]
