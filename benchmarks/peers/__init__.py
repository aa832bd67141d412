"""The servers that the benchmarks run: this gateway, its peers, and what the kernel allows."""

from collections.abc import Callable
from functools import partial

from benchmarks.peers.base import Peer
from benchmarks.peers.gateway import GatewayPeer
from benchmarks.peers.nchan import Nchan
from benchmarks.peers.npm import BetterSse
from benchmarks.peers.pypi import AiohttpSse, SseStarlette
from benchmarks.peers.roof import Roof

PEERS: dict[str, Callable[[], Peer]] = {
    "gateway": GatewayPeer,
    "roof": Roof,
    "roof-joining": partial(Roof, joining=True),
    "nchan": Nchan,
    "better-sse": BetterSse,
    "aiohttp-sse": AiohttpSse,
    "sse-starlette": SseStarlette,
}
