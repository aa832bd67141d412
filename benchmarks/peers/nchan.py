"""Nchan, the pub/sub module of NGINX, as fast as it can be set: one worker, all in memory."""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.peers.base import Server, local_server
from benchmarks.peers.processes import (
    HOST,
    START_SECONDS,
    free_port,
    serving,
)
from gateway.open_files import raise_limit

MODULE = "ngx_nchan_module.so"
CONNECTIONS = 100_000
KEPT_EVENTS = 20_000  # Of a channel: as many as this gateway keeps in `burst`.
# Debian puts `nginx` where only root's search path looks.
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") or ""

CONFIG = """
load_module {module};
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile {files};
pid {folder}/nginx.pid;
error_log stderr crit;
events {{
    use epoll;
    worker_connections {connections};
    accept_mutex off;
    multi_accept on;
}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_body_buffer_size 1m;
    client_max_body_size 8m;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    nchan_shared_memory_size 512m;
    server {{
        listen {host}:{port} backlog=65535;
        location ~ ^/streams/(.+)$ {{
            nchan_subscriber eventsource;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
        }}
        location ~ ^/publish/(.+)$ {{
            nchan_publisher http;
            nchan_channel_id $1;
            nchan_message_buffer_length {events};
            nchan_message_timeout 1h;
        }}
    }}
}}
"""


class Nchan:
    """One worker of NGINX with Nchan; the master process only looks after it."""

    name = "nchan"

    def missing(self) -> str:
        """Return what to install, or nothing when it can run."""
        if NGINX and _module().exists():
            return ""
        return "nchan is missing: apt-get install nginx-light libnginx-mod-nchan"

    @contextmanager
    def start(self, core: int, load_core: int) -> Iterator[Server]:
        """Run it on `core`, from a folder of its own; the system's NGINX is left alone."""
        port, files = free_port(), raise_limit() or CONNECTIONS
        with tempfile.TemporaryDirectory(prefix="nchan-") as folder:
            config = Path(folder) / "nginx.conf"
            config.write_text(
                CONFIG.format(
                    module=_module(),
                    folder=folder,
                    host=HOST,
                    port=port,
                    files=files,
                    connections=min(files, CONNECTIONS),
                    events=KEPT_EVENTS,
                )
            )
            command = [NGINX, "-p", folder, "-e", "stderr", "-c", str(config)]
            with serving(command, core, port) as master:
                yield local_server(port, _worker(master.pid))


def _module() -> Path:
    """Return where this NGINX looks for the module."""
    built = subprocess.run([NGINX, "-V"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"--modules-path=(\S+)", built)
    return Path(found[1] if found else "/usr/lib/nginx/modules") / MODULE


def _worker(master: int) -> int:
    """Return the process that holds the streams; the port answers before there is one."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        for child in psutil.Process(master).children():
            if "worker process" in " ".join(child.cmdline()):
                return child.pid
        time.sleep(0.01)
    raise RuntimeError("nginx has started no worker")
