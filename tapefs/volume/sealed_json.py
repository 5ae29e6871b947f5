"""One-line JSON objects that carry their own CRC-32C: the label's and the tails' data.

The last field is `"crc32c"`, eight lower-case hex digits: the CRC-32C of every byte before the
comma that precedes it. The line ends with a newline. So a checker needs no canonical JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final
from uuid import UUID

from crc32c import crc32c

_SEAL: Final = re.compile(rb',"crc32c":"([0-9a-f]{8})"\}\n\Z')
_WHOLE: Final = re.compile(r"-?[0-9]{1,19}")
_INT64_MAX: Final = 2**63 - 1


class MalformedJson(ValueError):
    """The bytes are no sealed JSON object, or a field in it is not what it must be."""


def seal(fields: dict[str, object]) -> bytes:
    """`fields` as one line with its CRC."""
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    body = text[:-1]
    return b'%b,"crc32c":"%08x"}\n' % (body, crc32c(body))


def unseal(line: bytes) -> dict[str, Any]:
    """The fields of a sealed line. Raises MalformedJson, also when the CRC is wrong."""
    match = _SEAL.search(line[-64:])
    if match is None:
        raise MalformedJson("it does not end with a checksum")
    body = line[: len(line) - len(match[0])]
    if int(match[1], 16) != crc32c(body):
        raise MalformedJson("its checksum is wrong")
    return parse_object(line)


def parse_object(text: bytes) -> dict[str, Any]:
    """A JSON object from bytes that nobody vouches for. Raises MalformedJson."""
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise MalformedJson("it is not JSON") from exc
    if type(value) is not dict:
        raise MalformedJson("it is not a JSON object")
    return value


def check_format(fields: dict[str, Any], what: str, version: int) -> None:
    """Raise MalformedJson unless the object says that it is a `what` of format `version`."""
    if fields.get("tapefs") != what or whole_number(fields.get("format")) != version:
        raise MalformedJson(f"it is no {what} of format {version}")


def uuid(value: object) -> UUID:
    """A UUID in its usual form of 36 characters. Raises MalformedJson."""
    if type(value) is not str or len(value) != 36:
        raise MalformedJson("the volume's UUID is missing or malformed")
    try:
        return UUID(value)
    except ValueError as exc:
        raise MalformedJson("the volume's UUID is malformed") from exc


def whole_number(value: object, maximum: int = _INT64_MAX) -> int:
    """`value` if it is an integer in 0..maximum. Raises MalformedJson."""
    if type(value) is not int or not 0 <= value <= maximum:
        raise MalformedJson("a number is missing or out of range")
    return value


def time_ns(value: object) -> int:
    """A time in nanoseconds, written as a string since it exceeds 2**53. Raises MalformedJson."""
    if type(value) is not str or not _WHOLE.fullmatch(value):
        raise MalformedJson("a time is missing or malformed")
    number = int(value)
    if not -_INT64_MAX - 1 <= number <= _INT64_MAX:
        raise MalformedJson("a time is out of range")
    return number


def digest(value: object, length_bytes: int) -> bytes:
    """A hash of `length_bytes` written as lower-case hex. Raises MalformedJson."""
    if type(value) is not str or len(value) != 2 * length_bytes or not value.isascii():
        raise MalformedJson("a hash is missing or has a wrong length")
    try:
        raw = bytes.fromhex(value)
    except ValueError as exc:
        raise MalformedJson("a hash is not hexadecimal") from exc
    if len(raw) != length_bytes:
        raise MalformedJson("a hash is not hexadecimal")
    return raw
