"""The commands and their names; what each does stands in its module."""

import typer

from gateway.cli.config import app as config_app
from gateway.cli.doctor import doctor
from gateway.cli.nginx_config import nginx_config
from gateway.cli.publish import publish
from gateway.cli.read import channels, snapshot, tail
from gateway.cli.serve import starting

app = typer.Typer(
    name="sse-gateway",
    help="Server-sent events with exact resume, and snapshots that any CDN can cache.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config_app, name="config", help="Check and show the settings.")
app.command("serve", help="Start the gateway; Ctrl-C or SIGTERM stops it.")(starting(demo=False))
app.command(
    "demo",
    help="Start the gateway, and publish this machine's own figures on host/… and gateway/…",
)(starting(demo=True))
app.command()(publish)
app.command()(tail)
app.command()(snapshot)
app.command()(channels)
app.command("nginx-config")(nginx_config)
app.command()(doctor)
