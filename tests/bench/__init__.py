"""The benchmark, `make bench`: how close the service's performance is to that of S3 itself.

The store, the service and the client are separate processes. The client makes the same transfers
directly with the store and through the service, in turn, round by round, so that other load on the
machine affects both. For direct transfers it uses aioboto3 with the service's own settings. The
results are the ratios of the two in each round: their median and their spread.
"""
