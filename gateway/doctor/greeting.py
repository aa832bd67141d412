"""Asks whether it is the gateway that answers, and what it says of a channel's namespace."""

from dataclasses import dataclass
from enum import Enum, auto

from gateway.doctor.finding import Finding, fault
from gateway.doctor.probe import Answer, Probe
from gateway.protocol.errors import GatewayError

_PASS = (
    "NGINX: location /snapshots/ { proxy_pass http://gateway; }  (nginx/nginx.conf)",
    "Varnish: the gateway as backend of /events, /slices/, /snapshots/, /history/",
    "or give the address with the gateway's base_path",
)
_INTERCEPTED = (
    "NGINX: proxy_intercept_errors off;  (or no error_page 404)",
    "Varnish: no return (synth(404)) in vcl_backend_response or vcl_deliver",
    "CDN: no custom error pages for these paths",
)


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a namespace says of itself. `ahead_seconds`: its `Date` less this machine's time."""

    epoch: str
    position: str
    slice_seconds: int
    reducer: str
    ahead_seconds: float


class Who(Enum):
    """Who answers in place of a greeting."""

    NOBODY = auto()  # Somebody on the way, in the gateway's place.
    ANOTHER = auto()
    GATEWAY = auto()  # It does, and refuses.


class NoGreeting(GatewayError):
    """Nothing else needs to be asked; `finding` says why, `who` who it was that answered."""

    def __init__(self, who: Who, finding: Finding) -> None:
        super().__init__(finding.text)
        self.who = who
        self.finding = finding


async def greet(probe: Probe, channel: str, quiet: str) -> tuple[Greeting, list[Finding]]:
    """Ask for a channel that does not exist: no cache has it, and the gateway's 404 says who it is.

    Raises NoGreeting.
    """
    answer = await probe.get(f"/snapshots/{quiet}", accept_encoding="identity")
    greeting = _read(answer)
    if greeting is not None:
        return greeting, []
    _check_problem(answer)
    # Its errors may be replaced by the pages of something else.
    greeting = _read(await probe.get(f"/snapshots/{channel}", accept_encoding="identity"))
    if greeting is None:
        raise NoGreeting(Who.ANOTHER, fault(
            "gateway",
            f"it is not the gateway that answers ({answer.status}, "
            f"{answer.headers.get('Content-Type', 'no Content-Type')})",
            *_PASS,
        ))  # fmt: skip
    return greeting, [fault(
        "error-pages",
        "the gateway's 404 is replaced by another page: whoever waits for a channel to begin lacks "
        "the position to follow it from",
        *_INTERCEPTED,
    )]  # fmt: skip


def _read(answer: Answer) -> Greeting | None:
    document = answer.document
    try:
        return Greeting(
            str(document["epoch"]),
            str(document["id"]),
            int(document["slice_seconds"]),
            str(document["reducer"]),
            0.0 if answer.date is None else answer.date - answer.at,
        )
    except (KeyError, ValueError, TypeError):
        return None


def _check_problem(answer: Answer) -> None:
    """Raise NoGreeting for what the gateway, or what stands before it, says of its state."""
    said = str(answer.document.get("detail", ""))
    if answer.status >= 500:
        raise NoGreeting(Who.NOBODY, fault(
            "gateway",
            f"the gateway does not answer; {answer.status} comes in its place"
            + (f": {said}" if said else ""),
            "start the gateway, and name its address: NGINX: upstream gateway { server …; }; "
            "Varnish: backend gateway { .host = …; }",
            "if it is stopped on purpose: --stopped looks at what readers are told meanwhile",
        ))  # fmt: skip
    if said and answer.status in (400, 403, 429):
        mend = "name a public channel with --channel"
        if answer.status == 429:
            mend = "try again later; NGINX: limit_req, for the address that this runs at"
        raise NoGreeting(
            Who.GATEWAY, fault("gateway", f"the answer is {answer.status}: {said}", mend)
        )
