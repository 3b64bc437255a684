"""`python -m service` is the same as the command `message-history-server`."""

from service.cli import main

main(prog_name="message-history-server")
