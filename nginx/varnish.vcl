# Varnish in front of the gateway: snapshots, history, long-polls and live slices are shared, one request
# to the gateway each. For Varnish 7 with the vmod xkey (Debian: varnish, varnish-modules). TLS and
# HTTP/2 for browsers belong in front of it (hitch, or nginx/nginx.conf with this as its upstream).
#
#     varnishd -a :8000 -f /etc/varnish/varnish.vcl -s malloc,1g -p thread_pool_max=5000
#
# A reader of a slice or a long-poll takes a thread for as long as it lasts: thread_pools times
# thread_pool_max (2 times 5000) is how many there can be.
vcl 4.1;

import std;
import xkey;

# CHOOSE the gateway's address.
backend gateway {
    .host = "127.0.0.1";
    .port = "8080";
    .connect_timeout = 5s;
    # A long-poll may take history.wait_limit_seconds; a slice says nothing for a heartbeat's time.
    .first_byte_timeout = 60s;
    .between_bytes_timeout = 60s;
    .probe = {
        .url = "/livez";
        .interval = 1s;
        .timeout = 1s;
        .window = 3;
        .threshold = 2;
        .initial = 2;
    }
}

# CHOOSE who may purge and refresh. What stands in front of Varnish on the same machine looks like
# loopback: have it speak the PROXY protocol (varnishd -a …,PROXY), so that its readers do not, or leave
# loopback out.
acl internal {
    "127.0.0.1";
    "::1";
}

sub vcl_recv {
    if (req.method == "PURGE") {
        if (client.ip !~ internal) {
            return (synth(403, "Forbidden"));
        }
        # Soft: what is purged may be served once more while it is fetched anew.
        set req.http.purged = xkey.softpurge(req.http.xkey-softpurge);
        return (synth(200, "Purged " + req.http.purged));
    }
    if (client.ip ~ internal && req.http.X-Refresh) {
        # Fetched anew, with the position that must be in it, and kept in place of what was there.
        set req.hash_always_miss = true;
    } else {
        unset req.http.Minimum-Position;
    }
    unset req.http.X-Refresh;

    # Publishing and administration are not for readers.
    if (req.method != "GET" && req.method != "HEAD" && req.method != "OPTIONS") {
        return (synth(405, "Method Not Allowed"));
    }
    if (req.url !~ "^/(events|slices|snapshots|history)([/?]|$)" &&
        req.url !~ "^/(client\.js|openapi\.json)$") {
        return (synth(404, "Not Found"));
    }

    # What the reader accepts, as one word, so that each coding is kept once. Varnish itself knows gzip
    # only, and would ask for nothing else; see vcl_backend_fetch.
    if (req.http.Accept-Encoding ~ "(?i);[ \t]*q=0(\.0*)?[ \t]*(,|$)") {
        set req.http.X-Coding = "identity";
    } elseif (req.url !~ "^/(slices|events)" && req.http.Accept-Encoding ~ "(?i)(^|[, \t])br([;, \t]|$)") {
        set req.http.X-Coding = "br";
    } elseif (req.http.Accept-Encoding ~ "(?i)(^|[, \t])zstd([;, \t]|$)") {
        set req.http.X-Coding = "zstd";
    } elseif (req.http.Accept-Encoding ~ "(?i)(^|[, \t])gzip([;, \t]|$)") {
        set req.http.X-Coding = "gzip";
    } else {
        set req.http.X-Coding = "identity";
    }

    # Readers need no cookies, and Varnish keeps nothing of requests that have some.
    unset req.http.Cookie;
    unset req.http.Authorization;

    # A stream is its reader's own: it has a position.
    if (req.url ~ "^/events" || req.method == "OPTIONS") {
        return (pass);
    }
    # With the gateway well, what is stale may be served only as long as it says itself
    # (stale-while-revalidate); see vcl_backend_response.
    if (std.healthy(req.backend_hint)) {
        set req.grace = 5s;
    }
    return (hash);
}

sub vcl_hash {
    hash_data(req.http.X-Coding);
}

sub vcl_backend_fetch {
    if (bereq.http.X-Coding) {
        set bereq.http.Accept-Encoding = bereq.http.X-Coding;
    }
}

sub vcl_backend_response {
    set beresp.http.xkey = beresp.http.Surrogate-Key;

    # Varnish takes stale-while-revalidate for its grace. While the gateway is down, grace is all that
    # there is, so it becomes the longer of both; vcl_recv cuts it short while the gateway is well. What
    # must never be stale (slices) has 0 in both.
    if (beresp.grace > 0s) {
        set beresp.grace = std.duration(
            regsub(beresp.http.Cache-Control, "^.*stale-if-error=([0-9]+).*$", "\1") + "s", beresp.grace);
    }
    # Kept beyond that only to be revalidated by its ETag: 304 in place of a body.
    set beresp.keep = 60s;

    # Errors and what may not be kept: no memory of it either, which would switch collapsing off.
    if (beresp.ttl <= 0s) {
        set beresp.uncacheable = true;
        set beresp.ttl = 0s;
        set beresp.grace = 0s;
        return (deliver);
    }
    # The built-in rules would look at Vary and Set-Cookie, of which there are none but the coding's.
    return (deliver);
}

sub vcl_deliver {
    if (obj.uncacheable) {
        set resp.http.X-Cache = "PASS";
    } elseif (obj.hits > 0) {
        set resp.http.X-Cache = "HIT";
    } else {
        set resp.http.X-Cache = "MISS";
    }
    unset resp.http.xkey;
    unset resp.http.Via;
    unset resp.http.X-Varnish;
}

# An EventSource never comes back after anything but 200: while the gateway is away a stream says so, and
# keeps the position that its reader has.
sub vcl_backend_error {
    if (bereq.url ~ "^/(events|slices/current)" && bereq.http.Accept ~ "text/event-stream") {
        set beresp.status = 200;
        set beresp.http.Content-Type = "text/event-stream";
        set beresp.http.Cache-Control = "no-store, no-transform";
        set beresp.http.Access-Control-Allow-Origin = "*";
        set beresp.ttl = 0s;
        set beresp.grace = 0s;
        set beresp.uncacheable = true;
        # An event without an id would take the reader's position away.
        set beresp.http.X-Known = ": away";
        if (bereq.http.Last-Event-ID ~ "^[0-9]{1,16}-[0-9]{1,16}$") {
            set beresp.http.X-Known = "id: " + bereq.http.Last-Event-ID;
        }
        synthetic("retry: " + std.integer(real=std.random(1000, 5000)) + """
""" + beresp.http.X-Known + """
event: unavailable
data: {"reason":"unreachable"}

""");
        unset beresp.http.X-Known;
        return (deliver);
    }
}
