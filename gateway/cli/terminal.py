"""What the command line's output has in common: consoles, errors in plain words, exit codes."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import ParamSpec

import typer
from rich.console import Console
from rich.markup import escape

from gateway.cli.client import Problem, Refused
from gateway.cli.file_sender import PublishingStopped
from gateway.protocol.errors import GatewayError
from gateway.settings import SettingsError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it.
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE.

# A terminal obeys these; data must not speak to it. C0, DEL and C1.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_CONTROLS |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}

_Parameters = ParamSpec("_Parameters")


class _PlainConsole(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command: rich would end the process here."""
        raise


def output() -> Console:
    """Return the console of what a command is asked for: never wrapped, so that it can be cut."""
    return _PlainConsole(soft_wrap=True, highlight=False)


def messages() -> Console:
    """Return the console of what a command says besides: progress, warnings, errors."""
    return _PlainConsole(stderr=True, soft_wrap=True, highlight=False)


def printable(text: str) -> str:
    """Return `text` on one line with every control character spelled out."""
    return text.translate(_CONTROLS)


def command(function: Callable[_Parameters, None]) -> Callable[_Parameters, None]:
    """Turn the errors of a command into words on standard error and an exit code."""

    @functools.wraps(function)
    def wrapped(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read this has seen enough. The interpreter flushes once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except (GatewayError, OSError, ExceptionGroup) as error:
            known = list(_known(error))
            if not known:
                raise
            for one in known:
                show_error(one)
            usage = any(isinstance(one, SettingsError) for one in known)
            raise typer.Exit(EXIT_USAGE if usage else EXIT_FAILURE) from None

    return wrapped


def _known(error: Exception) -> Iterator[Exception]:
    """Yield the errors that a message is enough for; nothing when there is any other."""
    if isinstance(error, ExceptionGroup):
        ours, rest = error.split((GatewayError, OSError))
        if rest is None and ours is not None:
            for one in ours.exceptions:
                yield from _known(one)
    else:
        yield error


def show_error(error: Exception) -> None:
    """Print what went wrong, one line first; a refusal's fields below it."""
    console = messages()
    text = "\n".join(map(printable, str(error).split("\n")))
    console.print(f"[bold red]Error:[/] {escape(text)}")
    cause = error.cause if isinstance(error, PublishingStopped) else error
    if isinstance(cause, Refused):
        for name, value in _fields(cause.problem):
            console.print(f"  [dim]{name:<7}[/]{escape(printable(value))}")


def _fields(problem: Problem) -> Iterator[tuple[str, str]]:
    yield "status", f"{problem.status} {problem.title}"
    if problem.field is not None:
        yield "field", str(problem.field)
    if problem.value is not None:
        yield "value", str(problem.value)
    if problem.rule is not None:
        yield "rule", str(problem.rule)
    for error in problem.errors:
        value = error.get("value")
        shown = "" if value is None else f" = {value}"
        place = f"{error.get('field')}{shown}: {error.get('rule')}"
        yield "line", f"{error.get('line')}: {place}"
