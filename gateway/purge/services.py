"""CDNs and webhooks: told by their HTTP interfaces which keys are old.

Sources: Fastly API, "Purge" (POST /service/{id}/purge, surrogate_keys, Fastly-Soft-Purge);
Cloudflare API, "Purge Cached Content" (POST /zones/{id}/purge_cache, tags);
Standard Webhooks (webhook-id, webhook-timestamp, webhook-signature).
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

import orjson

from gateway.protocol.errors import hide_password
from gateway.purge.request import Requests
from gateway.purge.target import Purge, PurgeFailed, key_of

_JSON = {"Content-Type": "application/json"}


class FastlyTarget:
    """Fastly, softly: what is purged may be served stale while it is fetched anew."""

    batch_limit = 256

    def __init__(self, requests: Requests, url: str, service: str, token: str) -> None:
        self._requests = requests
        self._url = f"{url}/service/{service}/purge"
        self._headers = {
            **_JSON,
            "Fastly-Key": token,
            "Fastly-Soft-Purge": "1",
            "Accept": "application/json",
        }

    async def purge(self, namespace: str, purges: Sequence[Purge]) -> None:
        """Purge by surrogate key; raises PurgeFailed."""
        # In the body, where keys may be given as well: 256 of them do not fit into a header.
        body = orjson.dumps({"surrogate_keys": [key_of(one) for one in purges]})
        await self._requests.send("POST", self._url, self._headers, body)


class CloudflareTarget:
    """Cloudflare, by cache tag."""

    batch_limit = 30  # Tags in one call, on every plan.

    def __init__(self, requests: Requests, url: str, zone: str, token: str) -> None:
        self._requests = requests
        self._url = f"{url}/zones/{zone}/purge_cache"
        self._headers = {**_JSON, "Authorization": f"Bearer {token}"}

    async def purge(self, namespace: str, purges: Sequence[Purge]) -> None:
        """Purge by tags; raises PurgeFailed, also when the answer is 200 and says no."""
        body = orjson.dumps({"tags": [key_of(one) for one in purges]})
        answer = await self._requests.send("POST", self._url, self._headers, body)
        try:
            done = orjson.loads(answer.body)["success"] is True
        except (ValueError, KeyError, TypeError):
            done = False
        if not done:
            said = answer.body[:200].decode(errors="replace")
            raise PurgeFailed(f"POST {hide_password(self._url)}: {said}")


class WebhookTarget:
    """Whatever takes a signed POST of JSON."""

    batch_limit = 100

    def __init__(
        self,
        requests: Requests,
        url: str,
        secret: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._requests = requests
        self._url = url
        self._secret = secret.encode()
        self._now = now

    async def purge(self, namespace: str, purges: Sequence[Purge]) -> None:
        """Send the channels with their positions and keys; raises PurgeFailed."""
        channels = [
            {
                "channel": one.channel,
                "id": str(one.position),
                "key": key_of(one),
            }
            for one in purges
        ]
        body = orjson.dumps({"namespace": namespace, "channels": channels})
        name, at = f"msg_{uuid4().hex}", str(int(self._now()))
        signed = hmac.new(self._secret, f"{name}.{at}.".encode() + body, hashlib.sha256).digest()
        headers = {
            **_JSON,
            "webhook-id": name,
            "webhook-timestamp": at,
            "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
        }
        await self._requests.send("POST", self._url, headers, body)
