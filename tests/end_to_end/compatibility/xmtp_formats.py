"""Invented histories, and the two kinds of bundle in which libxmtp has sent real ones.

`archive` and `open_archive`, since 2025: a header (version 0 as u16le, a 12-byte nonce), then one
zstd stream of frames. A frame is a u32le length and so many bytes of AES-256-GCM, each one protobuf
element; frame i is encrypted under the nonce plus i, a little-endian counter. The metadata come
first, then groups, their messages and the consents.

`jsonl_bundle` and `open_jsonl_bundle`, mid-2024: a 12-byte nonce, then AES-256-GCM of JSON lines.

Nothing in an archive says how long it is: a reader learns that it was cut only by what is missing
at its end, and one that does not look for that waits for ever. `open_archive` looks.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, TypeVar, get_type_hints

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION = (0).to_bytes(2, "little")
NONCE_SIZE = 12
TAG_SIZE = 16
HEADER_SIZE = len(VERSION) + NONCE_SIZE
BATCH_SIZE = 8_000
"""Bytes that the exporter gathers, at least, before it flushes its compressor and hands them on."""

_Element = TypeVar("_Element")


class BrokenBundle(Exception):
    """It is cut, damaged, or locked with another key."""


def _number(number: int) -> Any:
    """A field of a message, by its number in the .proto file."""
    return field(metadata={"number": number})


@dataclass(frozen=True)
class Metadata:
    elements: bytes = _number(2)  # which kinds were selected: packed enums
    exported_at_ns: int = _number(3)


@dataclass(frozen=True)
class Group:
    id: bytes = _number(1)
    created_at_ns: int = _number(2)
    membership_state: int = _number(3)
    added_by_inbox_id: str = _number(5)
    conversation_type: int = _number(8)


@dataclass(frozen=True)
class Message:
    id: bytes = _number(1)
    group_id: bytes = _number(2)
    decrypted_message_bytes: bytes = _number(3)
    sent_at_ns: int = _number(4)
    kind: int = _number(5)
    sender_installation_id: bytes = _number(6)
    sender_inbox_id: str = _number(7)
    delivery_status: int = _number(8)
    content_type: str = _number(16)


@dataclass(frozen=True)
class Consent:
    entity_type: int = _number(1)
    state: int = _number(2)
    entity: str = _number(3)
    consented_at_ns: int = _number(4)


Element = Metadata | Group | Message | Consent
KINDS: dict[int, type[Element]] = {1: Metadata, 2: Group, 3: Message, 4: Consent}


@dataclass(frozen=True)
class History:
    groups: tuple[Group, ...]
    messages: tuple[Message, ...]
    consents: tuple[Consent, ...] = ()


def invent(seed: int, size: int) -> History:
    """A history whose messages are `size` bytes or little more: chatter and some attachments."""
    rng = random.Random(seed)
    now = 1_735_689_600_000_000_000
    inboxes = [rng.randbytes(32).hex() for _ in range(4)]
    groups = tuple(Group(rng.randbytes(16), now, 1, inboxes[0], 1 + (i > 0)) for i in range(3))
    messages: list[Message] = []
    while size > 0:
        attachment = rng.random() < 0.2
        body = rng.randbytes(rng.randrange(1, 60_000 if attachment else 300))
        size -= len(body)
        now += rng.randrange(10**9)
        messages.append(
            Message(
                rng.randbytes(32),
                rng.choice(groups).id,
                body,
                now,
                1,
                rng.randbytes(32),
                rng.choice(inboxes),
                2,
                "attachment" if attachment else "text",
            )
        )
    consents = tuple(Consent(2, rng.randrange(1, 4), inbox, now) for inbox in inboxes)
    return History(groups, tuple(messages), consents)


def archive(history: History, key: bytes, nonce: bytes) -> Iterator[bytes]:
    """An archive in the batches in which its exporter hands it on."""
    yield VERSION + nonce
    metadata = Metadata(b"\x01\x02", history.messages[-1].sent_at_ns)
    elements: list[Element] = [metadata, *history.groups, *history.messages, *history.consents]
    cipher, compressor, batch = AESGCM(key), zstandard.ZstdCompressor().compressobj(), b""
    for at, element in enumerate(elements):
        sealed = cipher.encrypt(_counted(nonce, at), _encode_element(element), None)
        batch += compressor.compress(len(sealed).to_bytes(4, "little") + sealed)
        if len(batch) >= BATCH_SIZE:
            yield batch + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            batch = b""
    yield batch + compressor.flush()


def open_archive(body: Iterable[bytes], key: bytes) -> History:
    """Import an archive as it arrives; `BrokenBundle` unless it is whole."""
    elements: list[Element] = []
    try:
        elements.extend(_elements(iter(body), AESGCM(key)))
    except (zstandard.ZstdError, InvalidTag, ValueError) as error:
        raise BrokenBundle("damaged, or another key's") from error
    if not elements or not isinstance(elements[0], Metadata):
        raise BrokenBundle("no metadata")
    return History(
        tuple(found for found in elements if isinstance(found, Group)),
        tuple(found for found in elements if isinstance(found, Message)),
        tuple(found for found in elements if isinstance(found, Consent)),
    )


def _elements(body: Iterator[bytes], cipher: AESGCM) -> Iterator[Element]:
    header = b""
    while len(header) < HEADER_SIZE:
        if not (chunk := next(body, b"")):
            raise BrokenBundle("cut in its header")
        header += chunk
    header, rest = header[:HEADER_SIZE], header[HEADER_SIZE:]
    if not header.startswith(VERSION):
        raise BrokenBundle("of another version")
    nonce, decompressor = header[len(VERSION) :], zstandard.ZstdDecompressor().decompressobj()
    frames, at = bytearray(decompressor.decompress(rest) if rest else b""), 0
    while True:
        while len(frames) >= 4 and len(frames) - 4 >= (
            size := int.from_bytes(frames[:4], "little")
        ):
            if size < TAG_SIZE:
                raise BrokenBundle("a frame without room for its tag")
            yield _decode_element(
                cipher.decrypt(_counted(nonce, at), bytes(frames[4 : 4 + size]), None)
            )
            del frames[: 4 + size]
            at += 1
        if decompressor.eof:
            break
        if not (chunk := next(body, b"")):
            raise BrokenBundle("cut in its zstd stream")
        frames += decompressor.decompress(chunk)
    if frames or decompressor.unused_data or next(body, b""):
        raise BrokenBundle("cut in a frame, or followed by something")


def _counted(nonce: bytes, at: int) -> bytes:
    counter = (int.from_bytes(nonce, "little") + at) % (1 << 8 * NONCE_SIZE)
    return counter.to_bytes(NONCE_SIZE, "little")


def jsonl_bundle(history: History, key: bytes, nonce: bytes) -> bytes:
    """Groups, then messages, a JSON object a line; consents were not yet in it."""
    dump = partial(json.dumps, default=list, separators=(",", ":"))  # bytes are arrays of numbers
    rows: list[Element] = [*history.groups, *history.messages]
    lines = "".join(dump(asdict(row)) + "\n" for row in rows)
    return nonce + AESGCM(key).encrypt(nonce, lines.encode(), None)


def open_jsonl_bundle(bundle: bytes, key: bytes) -> History:
    """`BrokenBundle` unless all of it is there, as one tag guards it."""
    try:
        lines = AESGCM(key).decrypt(bundle[:NONCE_SIZE], bundle[NONCE_SIZE:], None)
    except (InvalidTag, ValueError) as error:
        raise BrokenBundle("cut, damaged, or another key's") from error
    rows = [json.loads(line) for line in lines.splitlines()]
    return History(
        tuple(_row(Group, row) for row in rows if "group_id" not in row),
        tuple(_row(Message, row) for row in rows if "group_id" in row),
    )


def _row(kind: type[_Element], row: dict[str, Any]) -> _Element:
    values = {
        name: bytes(value) if isinstance(value, list) else value for name, value in row.items()
    }
    return kind(**values)


# --- protobuf, as much of it as there is here -----------------------------------------------------


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(0x80 | value & 0x7F)
        value >>= 7
    return bytes([*encoded, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where the next thing begins."""
    value = shift = 0
    while True:
        if at == len(data):
            raise ValueError("it ends within a number")
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def _encode_field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _decode_fields(data: bytes) -> dict[int, int | bytes]:
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        value, at = _read_varint(data, at)
        if tag & 7 == 0:
            found[tag >> 3] = value
        elif tag & 7 == 2 and at + value <= len(data):
            found[tag >> 3], at = data[at : at + value], at + value
        else:
            raise ValueError("no such field is ever written")
    return found


def _encode_element(element: Element) -> bytes:
    kind = next(number for number, kind in KINDS.items() if kind is type(element))
    parts = [_encode_field(f.metadata["number"], getattr(element, f.name)) for f in fields(element)]
    return _encode_field(kind, b"".join(parts))


def _decode_element(data: bytes) -> Element:
    [(number, inside)] = _decode_fields(data).items()
    if number not in KINDS or not isinstance(inside, bytes):
        raise ValueError("no such element")
    kind, found = KINDS[number], _decode_fields(inside)
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for f in fields(kind):
        value = found[f.metadata["number"]]
        values[f.name] = (
            value.decode() if isinstance(value, bytes) and types[f.name] is str else value
        )
    return kind(**values)
