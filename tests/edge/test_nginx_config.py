"""`sse-gateway nginx-config` and nginx/: one configuration, which NGINX accepts."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli.nginx_config import Edge, render, template_directory
from gateway.settings import Settings
from tests.edge.running import certificate
from tests.edge.test_nginx import has_ipv6

ROOT = Path(__file__).parents[2]


def check(file: Path) -> None:
    """Have NGINX look at a configuration; where there is no IPv6, without the lines of that."""
    if not has_ipv6():
        file.write_text(re.sub(r" *listen \[::\].*\n", "", file.read_text()))
    done = subprocess.run(
        ["nginx", "-t", "-c", str(file), "-e", str(file.parent / "error.log")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


def settled(text: str, directory: Path) -> str:
    """Return a configuration with the certificate, the cache and the logs of a test."""
    made, key = certificate(directory)
    for old, new in (
        ("/etc/nginx/tls/fullchain.pem", str(made)),
        ("/etc/nginx/tls/privkey.pem", str(key)),
        ("/var/lib/nginx/sse-gateway ", f"{directory}/cache "),
        ("/var/log/nginx", str(directory)),
        ("/run/nginx.pid", f"{directory}/nginx.pid"),
    ):
        assert old in text
        text = text.replace(old, new)
    return text


def test_nginx_accepts_the_files_that_ship(tmp_path: Path) -> None:
    directory = tmp_path / "nginx"
    shutil.copytree(ROOT / "nginx", directory)
    for name in ("nginx.conf", "cache.conf"):
        file = directory / name
        text = file.read_text().replace("/var/lib/nginx/sse-gateway ", f"{tmp_path}/cache ")
        if name == "nginx.conf":
            made, key = certificate(tmp_path)
            text = text.replace("/etc/nginx/tls/fullchain.pem", str(made))
            text = text.replace("/etc/nginx/tls/privkey.pem", str(key))
        file.write_text(text)
    check(directory / "nginx.conf")


def test_nginx_accepts_what_the_command_prints(tmp_path: Path) -> None:
    made, key = certificate(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "nginx-config", "--certificate", str(made), "--key",
         str(key), "--http", "127.0.0.1:8000", "--https", "127.0.0.1:8443", "--cache",
         str(tmp_path / "cache"), "--trusted", "192.0.2.0/24", "--trusted", "2001:db8::/32",
         "--allow", "10.0.0.0/8"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    file = tmp_path / "printed.conf"
    file.write_text(done.stdout)
    check(file)
    assert "set_real_ip_from 2001:db8::/32;" in done.stdout
    assert "set_real_ip_from 127.0.0.1;" not in done.stdout
    assert "        allow 10.0.0.0/8;\n        deny all;\n" in done.stdout
    assert "allow 127.0.0.1;" not in done.stdout
    assert re.search(r"^\s*include ", done.stdout, re.MULTILINE) is None


def test_with_default_settings_it_says_what_the_files_say(tmp_path: Path) -> None:
    shipped = (ROOT / "nginx/nginx.conf").read_text()
    printed = render(Settings(), Edge())
    for include in re.findall(r"include (\w+\.conf);", shipped):
        for line in (template_directory() / include).read_text().splitlines():
            assert line.strip() in printed
    for line in shipped[shipped.index("worker_processes") :].splitlines():
        if "include " not in line:
            assert line in printed


@pytest.mark.parametrize(
    ("places", "lines"),
    [
        ({}, ["80;", "[::]:80;", "443 ssl http2;", "[::]:443 ssl http2;"]),
        ({"http": "8000", "https": "8443"},
         ["8000;", "[::]:8000;", "8443 ssl http2;", "[::]:8443 ssl http2;"]),
        # An address is the only one.
        ({"http": "0.0.0.0:80", "https": "[2001:db8::1]:443"},
         ["0.0.0.0:80;", "[2001:db8::1]:443 ssl http2;"]),
    ],
)  # fmt: skip
def test_it_listens_where_it_is_told_to(places: dict[str, str], lines: list[str]) -> None:
    text = render(Settings(), Edge(**places))  # type: ignore[arg-type]
    assert re.findall(r"^ *listen (.*)$", text, re.MULTILINE) == [*lines, "127.0.0.1:8081;"]


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({"port": 9000}, ["server 127.0.0.1:9000;"]),
        ({"host": "0.0.0.0"}, ["server 127.0.0.1:8080;"]),
        ({"host": "::1"}, ["server [::1]:8080;"]),
        ({"base_path": "/live"}, ["location /live/events {", "~ ^/live/(snapshots|history)/ {",
                                   "location /live/snapshots/ {", "location /live/history/ {",
                                   "location = /live/client.js {"]),
        ({"streams": {"heartbeat_seconds": 30}}, ["proxy_read_timeout 120s;"]),
        (
            {"history": {"wait_limit_seconds": 100}},
            ["proxy_cache_lock_timeout 115s;", "lock_age 115s;", "proxy_read_timeout 115s;"],
        ),
        ({"publish": {"batch_limit_bytes": 2**25}}, ["client_max_body_size 32m;"]),
        ({"namespaces": {"default": {"ring_age_seconds": 7200}}}, ["inactive=130m"]),
        ({"snapshots": {"wait_seconds": 4.5}}, ["proxy_cache_lock_timeout 6s;", "timeout 45s;"]),
    ],
)  # fmt: skip
def test_settings_are_filled_in(
    settings: dict[str, object], lines: list[str], tmp_path: Path
) -> None:
    text = render(Settings(**settings), Edge())  # type: ignore[arg-type]
    for line in lines:
        assert line in text
    file = tmp_path / "nginx.conf"
    file.write_text(settled(text, tmp_path))
    check(file)


def test_the_wheel_has_the_files(tmp_path: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    patterns = re.search(r'"share/sse-gateway/nginx" = \[(.*)\]', text)
    assert patterns is not None
    packed = {file.name for one in re.findall(r'"([^"]+)"', patterns[1]) for file in ROOT.glob(one)}
    assert packed == {file.name for file in (ROOT / "nginx").iterdir()}
