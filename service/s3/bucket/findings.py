"""What `check` and `permissions` report."""

from __future__ import annotations

from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, ClientError

from service.s3.calls import NETWORK_ERRORS, NO_RESPONSE, error_code, error_status
from service.s3.capabilities import DENIALS, REFUSALS

CALL_ERRORS = (ClientError, *NO_RESPONSE)
"""What a call to S3 raises: `failure` explains all of it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: its subject and a message, and for a problem what to do about it."""

    subject: str
    message: str
    remedy: str | None = None

    @property
    def ok(self) -> bool:
        return self.remedy is None


def failure(subject: str, error: Exception, denied_remedy: str) -> Finding:
    """Explain an error: a permission is missing, or the store fails or lacks something."""
    if not isinstance(error, ClientError):
        kind = type(error).__name__
        if isinstance(error, BotoCoreError) and not isinstance(error, NETWORK_ERRORS):
            return Finding(subject, f"the request cannot be sent ({kind})", "check the credentials")
        remedy = "check the health of this store and the network"
        return Finding(subject, f"the store does not respond ({kind})", remedy)
    code, status = error_code(error), error_status(error)
    if status in DENIALS:
        return Finding(subject, f"denied ({code})", denied_remedy)
    if status in REFUSALS:
        remedy = "use another store, or another version of this one: see docs/stores.md"
        return Finding(subject, f"not offered by this store ({code})", remedy)
    remedy = "check the health and the configuration of this store, such as its encryption"
    return Finding(subject, f"fails in this store ({code})", remedy)
