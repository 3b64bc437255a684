"""Random transfers and random faults. A `random.Random` with the same seed repeats them."""

from collections.abc import Mapping
from random import Random, SystemRandom
from typing import TypeVar

from service.bundles.buffers import MAX_REPLAY_SIZE
from service.bundles.memory import WINDOW_SIZE
from service.s3.retries import MAX_ATTEMPTS
from tests.support.clients.transfers import (
    Behaviour,
    Bundle,
    Claims,
    Delete,
    Download,
    Framing,
    Kind,
    Method,
    Proof,
    Transfer,
    Upload,
)
from tests.support.proxy import (
    Action,
    Delay,
    DropHeader,
    DropResponse,
    Fault,
    Reset,
    ResetRequest,
    Respond,
    Stall,
    Throttle,
    Truncate,
)
from tests.support.services.thread import SMALL_PART

_T = TypeVar("_T")


def seed(*, soak: bool) -> int:
    """Return a seed and print it: a new one for each soak test, otherwise always the same."""
    number = SystemRandom().randrange(1 << 32) if soak else 1
    print(f"\nseed {number}")
    return number


OPERATIONS = (
    *("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"),
    *("PutObjectTagging", "GetObjectTagging", "GetObject", "HeadObject", "DeleteObject"),
    *("ListMultipartUploads", "AbortMultipartUpload"),
)
"""All operations that a running service calls."""

NOT_FOUND = Respond(404, "NoSuchBucket"), Respond(404, "NoSuchUpload")
REPEATS = 1, 1, 2, MAX_ATTEMPTS, 2 * MAX_ATTEMPTS
BUFFER_SIZES = [WINDOW_SIZE, SMALL_PART, MAX_REPLAY_SIZE, 2 * SMALL_PART]

KINDS: Mapping[Kind, int] = {
    "good": 60,
    "slow": 10,
    "leaves": 10,
    "resets": 10,
    "half-closes": 10,
}
FRAMINGS: Mapping[Framing, int] = {"length": 1, "chunked": 1, "form": 1}
CLAIMS: Mapping[Claims, int] = {
    "nothing": 25,
    "hmac": 30,
    "key": 15,
    "digest": 10,
    "wrong digest": 10,
    "wrong hmac": 10,
}
PROOFS: Mapping[Proof, int] = {
    "right": 70,
    "other key": 12,
    "other hmac": 12,
    "half": 3,
    "none": 3,
}
METHODS: Mapping[Method, int] = {"GET": 85, "HEAD": 15}
SIZES = {"small": 60, "medium": 20, "edge": 12, "large": 8}


def _weighted_choice(rng: Random, weights: Mapping[_T, int]) -> _T:
    return rng.choices(list(weights), list(weights.values()))[0]


def size(rng: Random) -> int:
    """Choose a size: mostly small, else near a buffer's size, or up to three parts."""
    match _weighted_choice(rng, SIZES):
        case "small":
            return rng.randint(1, 5_000)
        case "medium":
            return rng.randint(WINDOW_SIZE, 8 * WINDOW_SIZE)
        case "edge":
            return rng.choice(BUFFER_SIZES) + rng.randint(-1, 1)
    return rng.randint(SMALL_PART, 3 * SMALL_PART)


def behaviour(rng: Random) -> Behaviour:
    return Behaviour(_weighted_choice(rng, KINDS), rng.choice((0, 1, rng.random())))


def upload(rng: Random) -> Upload:
    framing, claims = _weighted_choice(rng, FRAMINGS), _weighted_choice(rng, CLAIMS)
    if framing == "form" and "digest" in claims:  # The service refuses this.
        claims = "nothing"
    return Upload(Bundle(rng.getrandbits(32), size(rng)), framing, claims, behaviour(rng))


def download(rng: Random, bundle_id: str, bundle: Bundle) -> Download:
    """Choose a download. Its range may start after the end of the bundle."""
    byte_range = None
    if rng.random() < 0.3:
        first = rng.randint(0, bundle.size + 10)
        byte_range = first, first + rng.choice((0, 1, bundle.size // 2, bundle.size))
    method, proof = _weighted_choice(rng, METHODS), _weighted_choice(rng, PROOFS)
    return Download(bundle_id, bundle, proof, byte_range, behaviour(rng), method)


def delete(rng: Random, bundle_id: str, bundle: Bundle) -> Delete:
    return Delete(bundle_id, bundle, _weighted_choice(rng, PROOFS), behaviour(rng))


def transfer(rng: Random, bundles: Mapping[str, Bundle]) -> Transfer:
    """Choose an upload, or a download or delete of one of these bundles, by their ids.

    The bundles may include deleted ones. Without any, the choice is an upload.
    """
    kind = rng.choices(("upload", "download", "delete"), (45, 40, 15))[0]
    if kind == "upload" or not bundles:
        return upload(rng)
    bundle_id = rng.choice(list(bundles))
    return (download if kind == "download" else delete)(rng, bundle_id, bundles[bundle_id])


def fault(rng: Random) -> Fault:
    """Choose any action for one operation or for all, once or several times.

    It may also happen as often as the client retries, or more. Responses are only those that S3
    could send: HeadObject has no error code, so its 404 would mean that the object does not exist.
    """
    operation = rng.choice((*OPERATIONS, None, None, None))
    injected = action(rng)
    while operation in ("HeadObject", None) and injected in NOT_FOUND:
        injected = action(rng)
    return Fault(operation, injected, times=rng.choice(REPEATS), after=rng.choice((0, 0, 1)))


def action(rng: Random) -> Action:
    after = rng.choice((0, rng.randint(0, 3_000), rng.randint(0, 2 * SMALL_PART)))
    return rng.choice(
        (
            Respond(503, "SlowDown"),
            Respond(500, "InternalError"),
            Respond(403, "AccessDenied"),
            *NOT_FOUND,
            ResetRequest(after),
            Reset(after),
            Truncate(after),
            Stall(rng.random(), after),
            Throttle(rng.randint(4, 16) << 20),
            Delay(rng.random()),
            DropResponse(),
            DropHeader("Range"),
        )
    )
