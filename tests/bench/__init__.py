"""How near the service comes to S3 itself: `make bench`.

A store, the service and a client are processes of their own. What the client does it does by turns
straight to the store, with the aioboto3 client of the service and its settings, and through the
service, round by round, so that whatever else the machine does hits both. What is told is the ratio
of the two in each round, its median and its spread.
"""
