"""The command line, `sse-gateway`: options in, words and exit codes out."""

from gateway.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; the entry point of `sse-gateway`."""
    app()
