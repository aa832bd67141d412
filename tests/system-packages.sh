#!/usr/bin/env bash
# See that the programs which the tests call are there: install them with apt-get when
# root on Debian or Ubuntu, otherwise say exactly which are missing and stop.
set -euo pipefail

missing=()
need() { # need PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

need curl curl
need node nodejs
need npm npm
need openssl openssl
# Network namespaces are of Linux; where only root may make them, their test says so.
[ "$(uname)" != Linux ] || need ip iproute2
# The edges; not on every system are they on the PATH of others than root.
PATH=$PATH:/usr/sbin:/usr/local/sbin
need nginx nginx
need varnishd varnish
find /usr/lib* /usr/local/lib* -name libvmod_xkey.so 2>/dev/null | grep -q . || missing+=(varnish-modules)
command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 ||
    command -v google-chrome >/dev/null 2>&1 || missing+=(chromium)
# A Python without its `venv` (Debian splits it off) cannot make one.
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing+=(python3-venv)

if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing for the tests: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends "${missing[@]}"
    exit 0
fi

echo "The tests need these system packages, which are missing: ${missing[*]}" >&2
echo "On Debian or Ubuntu: sudo apt-get install ${missing[*]}" >&2
exit 1
