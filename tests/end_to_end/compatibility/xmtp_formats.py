"""Generated histories, and the two formats of bundles that libxmtp has used.

`encrypt_archive` and `decrypt_archive`, since 2025: a header (version 0 as u16le, a 12-byte nonce),
then one zstd stream of frames. A frame is a u32le length and that many bytes of AES-256-GCM. Each
frame holds one protobuf element. Frame i is encrypted under the nonce plus i, a little-endian
counter. The metadata come first, then groups, their messages and the consents.

`encrypt_jsonl_bundle` and `decrypt_jsonl_bundle`, mid-2024: a 12-byte nonce, then AES-256-GCM of
JSON lines.

An archive does not contain its own length. Only the missing end shows that an archive is truncated.
A reader that does not check for the end waits forever. `decrypt_archive` checks for the end.
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
"""The exporter collects at least this many bytes before it flushes its compressor."""

_Element = TypeVar("_Element")


class InvalidBundle(Exception):
    """The bundle is truncated, damaged, or encrypted with another key."""


def _number(number: int) -> Any:
    """Declare a field of a protobuf message, with its number in the .proto file."""
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


def make_history(seed: int, size: int) -> History:
    """Return a history of short messages and some attachments, of `size` bytes or slightly more."""
    rng = random.Random(seed)
    now = 1_735_689_600_000_000_000
    inboxes = [rng.randbytes(32).hex() for _ in range(4)]
    groups = tuple(
        Group(rng.randbytes(16), now, 1, inboxes[0], 1 + (index > 0)) for index in range(3)
    )
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


def encrypt_archive(history: History, key: bytes, nonce: bytes) -> Iterator[bytes]:
    """Yield an archive in the batches in which the exporter passes it on."""
    yield VERSION + nonce
    metadata = Metadata(b"\x01\x02", history.messages[-1].sent_at_ns)
    elements: list[Element] = [metadata, *history.groups, *history.messages, *history.consents]
    cipher, compressor, batch = AESGCM(key), zstandard.ZstdCompressor().compressobj(), b""
    for index, element in enumerate(elements):
        encrypted = cipher.encrypt(_frame_nonce(nonce, index), _encode_element(element), None)
        batch += compressor.compress(len(encrypted).to_bytes(4, "little") + encrypted)
        if len(batch) >= BATCH_SIZE:
            yield batch + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            batch = b""
    yield batch + compressor.flush()


def decrypt_archive(body: Iterable[bytes], key: bytes) -> History:
    """Import an archive as it arrives. Raises `InvalidBundle` unless it is complete."""
    elements: list[Element] = []
    try:
        elements.extend(_read_elements(iter(body), AESGCM(key)))
    except (zstandard.ZstdError, InvalidTag, ValueError) as error:
        raise InvalidBundle("damaged, or encrypted with another key") from error
    if not elements or not isinstance(elements[0], Metadata):
        raise InvalidBundle("no metadata")
    return History(
        tuple(element for element in elements if isinstance(element, Group)),
        tuple(element for element in elements if isinstance(element, Message)),
        tuple(element for element in elements if isinstance(element, Consent)),
    )


def _read_elements(body: Iterator[bytes], cipher: AESGCM) -> Iterator[Element]:
    header = b""
    while len(header) < HEADER_SIZE:
        if not (chunk := next(body, b"")):
            raise InvalidBundle("truncated in its header")
        header += chunk
    header, rest = header[:HEADER_SIZE], header[HEADER_SIZE:]
    if not header.startswith(VERSION):
        raise InvalidBundle("unknown version")
    nonce, decompressor = header[len(VERSION) :], zstandard.ZstdDecompressor().decompressobj()
    frames, index = bytearray(decompressor.decompress(rest) if rest else b""), 0
    while True:
        while len(frames) >= 4 and len(frames) - 4 >= (
            size := int.from_bytes(frames[:4], "little")
        ):
            if size < TAG_SIZE:
                raise InvalidBundle("a frame without room for its tag")
            yield _decode_element(
                cipher.decrypt(_frame_nonce(nonce, index), bytes(frames[4 : 4 + size]), None)
            )
            del frames[: 4 + size]
            index += 1
        if decompressor.eof:
            break
        if not (chunk := next(body, b"")):
            raise InvalidBundle("truncated in its zstd stream")
        frames += decompressor.decompress(chunk)
    if frames or decompressor.unused_data or next(body, b""):
        raise InvalidBundle("truncated in a frame, or followed by other data")


def _frame_nonce(nonce: bytes, index: int) -> bytes:
    counter = (int.from_bytes(nonce, "little") + index) % (1 << 8 * NONCE_SIZE)
    return counter.to_bytes(NONCE_SIZE, "little")


def encrypt_jsonl_bundle(history: History, key: bytes, nonce: bytes) -> bytes:
    """Encrypt groups, then messages, one JSON object per line. This format had no consents."""
    # `default=list` writes bytes as arrays of numbers.
    dump = partial(json.dumps, default=list, separators=(",", ":"))
    rows: list[Element] = [*history.groups, *history.messages]
    lines = "".join(dump(asdict(row)) + "\n" for row in rows)
    return nonce + AESGCM(key).encrypt(nonce, lines.encode(), None)


def decrypt_jsonl_bundle(bundle: bytes, key: bytes) -> History:
    """Decrypt a bundle. One tag protects all of it, so a partial one raises `InvalidBundle`."""
    try:
        lines = AESGCM(key).decrypt(bundle[:NONCE_SIZE], bundle[NONCE_SIZE:], None)
    except (InvalidTag, ValueError) as error:
        raise InvalidBundle("truncated, damaged, or encrypted with another key") from error
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


# --- protobuf: only the features that these messages use -----------------------------------------


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(0x80 | value & 0x7F)
        value >>= 7
    return bytes([*encoded, value])


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the number at this position, and the position after it."""
    value = shift = 0
    while True:
        if position == len(data):
            raise ValueError("the data end within a number")
        value |= (data[position] & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if data[position - 1] < 0x80:
            return value, position


def _encode_field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _decode_fields(data: bytes) -> dict[int, int | bytes]:
    values: dict[int, int | bytes] = {}
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        value, position = _read_varint(data, position)
        if tag & 7 == 0:
            values[tag >> 3] = value
        elif tag & 7 == 2 and position + value <= len(data):
            values[tag >> 3], position = data[position : position + value], position + value
        else:
            raise ValueError("libxmtp never writes such a field")
    return values


def _encode_element(element: Element) -> bytes:
    kind = next(number for number, kind in KINDS.items() if kind is type(element))
    parts = [
        _encode_field(item.metadata["number"], getattr(element, item.name))
        for item in fields(element)
    ]
    return _encode_field(kind, b"".join(parts))


def _decode_element(data: bytes) -> Element:
    [(number, content)] = _decode_fields(data).items()
    if number not in KINDS or not isinstance(content, bytes):
        raise ValueError("unknown element")
    kind, encoded = KINDS[number], _decode_fields(content)
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for item in fields(kind):
        value = encoded[item.metadata["number"]]
        values[item.name] = (
            value.decode() if isinstance(value, bytes) and types[item.name] is str else value
        )
    return kind(**values)
