"""`python -m gateway` is `sse-gateway`."""

from gateway.cli import main

main()
