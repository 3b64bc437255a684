"""What can be done with bundles. Knows neither Starlette nor botocore.

    service       upload, download and delete
    access        looks bundles up, decides who may download or delete them, and reads them
    upload        one upload on its way into S3: streamed, or collected in parts
    stream        the body of an upload that is sent to S3 while it arrives
    memory        the memory limit for the bytes of all transfers
    buffers       bytes that are kept until they are sent, or to be sent again
    limits        what one caller may cost: wrong proofs, uploads at once, bytes in an hour, windows
    background    work that outlives its request: cleanup after failed uploads, receipts

    proof         HMACs, receipts and digests; what an upload claims about itself
    record        a bundle's record and its object tags; expiry
    ranges        byte ranges and conditions

The last three are pure: they do no input or output.
"""
