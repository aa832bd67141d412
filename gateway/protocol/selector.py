"""Selectors: which channels of one namespace a subscription follows."""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from gateway.protocol.channel import CHANNEL_LIMIT_BYTES, check_channel, namespace_of
from gateway.protocol.errors import InvalidField


@dataclass(frozen=True, slots=True)
class Selection:
    """A normalised set of selectors of one namespace; equal sets compare equal.

    `channels` are exact names, `prefixes` are the part of `prefix/*` before the star, with
    its slash. Nothing in it is covered by another member. `enveloped` says that each event's
    data comes with its channel and key.
    """

    namespace: str
    channels: tuple[str, ...]
    prefixes: tuple[str, ...]
    enveloped: bool = False

    @property
    def single(self) -> str | None:
        """The channel's name when the selection is one exact channel."""
        return self.channels[0] if len(self.channels) == 1 and not self.prefixes else None

    def matches(self, channel: str) -> bool:
        """Tell whether `channel`, of the same namespace, is selected."""
        return channel in self.channels or channel.startswith(self.prefixes)


def parse_selection(
    selectors: Iterable[str],
    declared: Container[str],
    limit_bytes: int = CHANNEL_LIMIT_BYTES,
) -> Selection:
    """Return the normalised selection that `selectors` spell.

    `declared` are the configured namespaces. Raises InvalidField when one is malformed, when
    there is none, or when they span several namespaces.
    """
    exact: set[str] = set()
    prefixes: set[str] = set()
    namespaces: dict[str, str] = {}
    for selector in selectors:
        stem, star, rest = selector.partition("/*")
        if star and rest:
            raise InvalidField(
                "channel", selector[:300], "a wildcard stands only at the end: prefix/*"
            )
        if selector == "*":
            raise InvalidField("channel", selector, "a wildcard needs a prefix: prefix/*")
        check_channel(stem, limit_bytes=limit_bytes)
        namespaces.setdefault(namespace_of(stem, declared), selector)
        (prefixes if star else exact).add(f"{stem}/" if star else stem)
    if not namespaces:
        raise InvalidField("channel", None, "at least one channel is needed")
    if len(namespaces) > 1:
        listed = ", ".join(f"{selector} is in {name}" for name, selector in namespaces.items())
        raise InvalidField("channel", None, f"all channels must share one namespace; {listed}")
    widest = tuple(
        sorted(p for p in prefixes if not any(p != q and p.startswith(q) for q in prefixes))
    )
    channels = tuple(sorted(c for c in exact if not c.startswith(widest)))
    return Selection(next(iter(namespaces)), channels, widest)
