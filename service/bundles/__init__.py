"""What can be done with bundles. Knows neither Starlette nor botocore.

    service       upload, download and delete
    access        looks bundles up, and decides who may download or delete them
    upload        one upload on its way into S3: streamed, or collected in parts
    stream        the body of an upload that is sent to S3 while it arrives
    download      the bytes of a download, with the memory that they hold
    memory        the memory limit for the bytes of all transfers
    background    work that outlives its request: cleanup after failed uploads, receipts

    claims        what an upload claims about itself, and its verification
    proof         HMACs, receipts and digests
    record        a bundle's record and its object tags; expiry
    ranges        byte ranges and conditions

The last four are pure: they do no input or output.
"""
