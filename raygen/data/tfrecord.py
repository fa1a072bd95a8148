"""TFRecord files of `tf.Example`, without TensorFlow: what YouTube-8M is published in.

A record is its length (8 bytes), a checksum of that, the data, and a checksum of those. An example
is a protobuf message that maps a feature's name to a list of bytes, floats or integers; a
`tf.SequenceExample` (frame level) has the same map in the same place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from raygen.errors import DataError

Values = list[bytes] | list[int]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Feature's oneof: 1 is a BytesList, 2 a FloatList, 3 an Int64List.
_BYTES_LIST, _INT64_LIST = 1, 3


def records(data: bytes, uri: str) -> Iterator[memoryview]:
    """The records of one file. Raises DataError where it is cut off or no TFRecord file."""
    at, view = 0, memoryview(data)
    while at < len(data):
        if at + 12 > len(data):
            raise DataError(f"{uri} is cut off at byte {at:,}", uri)
        length, checksum = struct.unpack_from("<QI", data, at)
        if masked_crc(data[at : at + 8]) != checksum:
            raise DataError(f"{uri} is no TFRecord file, or broken at byte {at:,}", uri)
        if at + length + 16 > len(data):
            raise DataError(f"{uri} is cut off at byte {at:,}", uri)
        yield view[at + 12 : at + 12 + length]
        at += length + 16


def features(record: memoryview, uri: str) -> dict[str, Values]:
    """Name to values of an example's bytes and integer features; others are left out."""
    found: dict[str, Values] = {}
    try:
        for message in _messages(record, 1):
            for entry in _messages(message, 1):
                name = b"".join(bytes(key) for key in _messages(entry, 1)).decode()
                for feature in _messages(entry, 2):
                    for values in _messages(feature, _BYTES_LIST):
                        found[name] = [bytes(value) for value in _messages(values, 1)]
                    for values in _messages(feature, _INT64_LIST):
                        found[name] = _integers(values)
    except (IndexError, ValueError, struct.error):
        raise DataError(f"{uri} holds a record that is no tf.Example", uri) from None
    return found


def masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecord stores it: rotated and shifted."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _row(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = [_row(byte) for byte in range(256)]


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The fields of number `wanted` that are bytes, strings or messages."""
    for number, kind, value in _fields(message):
        if number == wanted and kind == _BYTES:
            yield value


def _integers(message: memoryview) -> list[int]:
    """An Int64List: packed, as TensorFlow writes it, or one field a value."""
    found: list[int] = []
    for number, kind, value in _fields(message):
        if number == 1 and kind == _BYTES:
            at = 0
            while at < len(value):
                integer, at = _varint(value, at)
                found.append(integer)
        elif number == 1 and kind == _VARINT:
            found.append(_varint(value, 0)[0])
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """(number, wire type, value) of every field."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind, begin = key & 7, at
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            length, begin = _varint(message, at)
            at = begin + length
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(kind)
        if at > len(message):
            raise ValueError(at)
        yield key >> 3, kind, message[begin:at]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
