"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file (TOML). \\[env: GATEWAY_CONFIG]", metavar="FILE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Url = Annotated[
    str,
    typer.Option("--url", envvar="GATEWAY_URL", help="The gateway's address.", metavar="URL"),
]
DEFAULT_URL = "http://127.0.0.1:8080"
