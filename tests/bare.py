"""A bare client of S3, in a process of its own: for each line, so many PutObjects of 4 KiB.

It answers with the seconds of CPU that they took.
"""

import sys
import time
from uuid import uuid4

import uvloop

from tests.bench import parties

SIZE = 4096


async def main(bucket: str) -> None:
    async with parties.bare() as s3:
        for line in sys.stdin:
            began = time.process_time()
            for _ in range(int(line)):
                await s3.put_object(Bucket=bucket, Key=f"bare/{uuid4()}", Body=bytes(SIZE))
            print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
