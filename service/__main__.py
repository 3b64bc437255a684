"""`python -m service`, the same as `message-history-server`."""

from service.cli import main

main(prog_name="message-history-server")
