"""Say whether the store that AWS_ENDPOINT_URL_S3 names can be reached."""

import sys

from tests.support.stores.store import from_environment, unreachable

if __name__ == "__main__":
    chosen = from_environment()
    sys.exit(unreachable(chosen) if chosen else None)
