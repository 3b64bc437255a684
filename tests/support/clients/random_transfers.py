"""Random transfers and random faults, all out of one `random.Random`."""

from collections.abc import Mapping
from random import Random, SystemRandom
from typing import TypeVar

from service.bundles.memory import SLOT_SIZE
from service.s3.retries import MAX_ATTEMPTS
from tests.support.clients.transfers import (
    Bundle,
    Claimed,
    Delete,
    Download,
    Framing,
    Kind,
    Manner,
    Method,
    Proven,
    Transfer,
    Upload,
)
from tests.support.proxy import (
    Action,
    Delay,
    Drip,
    Fault,
    IgnoreRange,
    Reset,
    ResetRequest,
    Respond,
    Stall,
    Swallow,
    Truncate,
)
from tests.support.services.thread import SMALL_PART

_T = TypeVar("_T")


def seed(*, soak: bool) -> int:
    """Return a seed and print it: a new one for each soak, otherwise always the same."""
    number = SystemRandom().randrange(1 << 32) if soak else 1
    print(f"\nseed {number}")
    return number


OPERATIONS = (
    *("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"),
    *("PutObjectTagging", "GetObjectTagging", "GetObject", "HeadObject", "DeleteObject"),
    *("ListMultipartUploads", "AbortMultipartUpload"),
)
"""All that a service that runs asks of S3."""

NOT_FOUND = Respond(404, "NoSuchBucket"), Respond(404, "NoSuchUpload")
TIMES = 1, 1, 2, MAX_ATTEMPTS, 2 * MAX_ATTEMPTS
EDGES = [SLOT_SIZE, SLOT_SIZE, SMALL_PART, 2 * SMALL_PART]


KINDS: Mapping[Kind, int] = {
    "good": 60,
    "slow": 10,
    "leaves": 10,
    "resets": 10,
    "half-closes": 10,
}
FRAMINGS: Mapping[Framing, int] = {"length": 1, "chunked": 1, "form": 1}
CLAIMS: Mapping[Claimed, int] = {
    "nothing": 25,
    "hmac": 30,
    "key": 15,
    "digest": 10,
    "wrong digest": 10,
    "wrong hmac": 10,
}
PROOFS: Mapping[Proven, int] = {
    "right": 70,
    "other key": 12,
    "other hmac": 12,
    "half": 3,
    "none": 3,
}
METHODS: Mapping[Method, int] = {"GET": 85, "HEAD": 15}
SIZES = {"small": 60, "medium": 20, "edge": 12, "large": 8}


def _one(dice: Random, weights: Mapping[_T, int]) -> _T:
    return dice.choices(list(weights), list(weights.values()))[0]


def size(dice: Random) -> int:
    """Mostly small; else near an edge of a buffer, or up to three parts."""
    match _one(dice, SIZES):
        case "small":
            return dice.randint(1, 5_000)
        case "medium":
            return dice.randint(SLOT_SIZE, 4 * SLOT_SIZE)
        case "edge":
            return dice.choice(EDGES) + dice.randint(-1, 1)
    return dice.randint(SMALL_PART, 3 * SMALL_PART)


def manner(dice: Random) -> Manner:
    return Manner(_one(dice, KINDS), dice.choice((0, 1, dice.random())))


def upload(dice: Random) -> Upload:
    framing, claimed = _one(dice, FRAMINGS), _one(dice, CLAIMS)
    if framing == "form" and "digest" in claimed:  # That is refused.
        claimed = "nothing"
    return Upload(Bundle(dice.getrandbits(32), size(dice)), framing, claimed, manner(dice))


def download(dice: Random, bundle_id: str, bundle: Bundle) -> Download:
    """Also of ranges that begin behind the end."""
    part = None
    if dice.random() < 0.3:
        first = dice.randint(0, bundle.size + 10)
        part = first, first + dice.choice((0, 1, bundle.size // 2, bundle.size))
    method, proven = _one(dice, METHODS), _one(dice, PROOFS)
    return Download(bundle_id, bundle, proven, part, manner(dice), method)


def delete(dice: Random, bundle_id: str, bundle: Bundle) -> Delete:
    return Delete(bundle_id, bundle, _one(dice, PROOFS), manner(dice))


def transfer(dice: Random, told: Mapping[str, Bundle]) -> Transfer:
    """An upload, or something done with one of the bundles whose ids were told, if there are any.

    Also with those that have been deleted.
    """
    what = dice.choices(("upload", "download", "delete"), (45, 40, 15))[0]
    if what == "upload" or not told:
        return upload(dice)
    bundle_id = dice.choice(list(told))
    return (download if what == "download" else delete)(dice, bundle_id, told[bundle_id])


def fault(dice: Random) -> Fault:
    """Any action on any operation, or on whatever comes next; once or a few times.

    Also as often as the client tries, and more. It is only what S3 may say: a bare 404, which is
    all that HeadObject has, would say that there is no object.
    """
    operation = dice.choice((*OPERATIONS, None, None, None))
    struck = action(dice)
    while operation in ("HeadObject", None) and struck in NOT_FOUND:
        struck = action(dice)
    return Fault(operation, struck, times=dice.choice(TIMES), after=dice.choice((0, 0, 1)))


def action(dice: Random) -> Action:
    after = dice.choice((0, dice.randint(0, 3_000), dice.randint(0, 2 * SMALL_PART)))
    return dice.choice(
        (
            Respond(503, "SlowDown"),
            Respond(500, "InternalError"),
            Respond(403, "AccessDenied"),
            *NOT_FOUND,
            ResetRequest(after),
            Reset(after),
            Truncate(after),
            Stall(dice.random(), after),
            Drip(dice.randint(4, 16) << 20),
            Delay(dice.random()),
            Swallow(),
            IgnoreRange(),
        )
    )
