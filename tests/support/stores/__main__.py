"""Check that the store in AWS_ENDPOINT_URL_S3 can be reached. Without the variable, do nothing."""

import sys

from tests.support.stores.store import connection_problem, from_environment

if __name__ == "__main__":
    store = from_environment()
    sys.exit(connection_problem(store) if store else None)
