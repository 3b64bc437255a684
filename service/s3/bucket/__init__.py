"""The commands for the bucket. The service itself does not import them.

initialization   `init-bucket`: creates and configures the bucket
check            `check`: reports problems with the bucket
findings         what `check` reports, and how it explains an error
permissions      which actions the credentials may use
sweep            `sweep`: removes expired bundles from stores without a lifecycle
"""
