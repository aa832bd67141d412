# Varnish in front of the gateway: snapshots, history, long-polls and live slices are shared, one request
# to the gateway each. For Varnish 7 with the vmod xkey (Debian: varnish, varnish-modules). TLS and
# HTTP/2 for browsers belong in front of it (hitch, or nginx/nginx.conf with this as its upstream).
#
#     varnishd -a readers=:8000 -a internal=127.0.0.1:8001 -f /etc/varnish/varnish.vcl \
#              -s malloc,1g -p thread_pool_max=5000
#
# Purges and refreshes are taken on the address named `internal` alone: `purge.varnish_urls` names it.
# With hitch in front, let both speak PROXY (-a readers=127.0.0.1:8000,PROXY) for the readers' addresses.
#
# With a base_path, as in /live, put it into the paths:
#
#     sed 's|"^/|"^/live/|g; s|"/livez"|"/live/livez"|' varnish.vcl
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

# CHOOSE who may purge and refresh, at the internal address.
acl internal {
    "127.0.0.1";
    "::1";
}

sub vcl_recv {
    if (req.restarts == 0) {
        unset req.http.X-Stale;
        unset req.http.X-Cold;
        if (local.socket != "internal" || client.ip !~ internal) {
            if (req.method == "PURGE") {
                return (synth(403, "Forbidden"));
            }
            # Only a refresh from within may say what must be in its answer.
            unset req.http.X-Refresh;
            unset req.http.Minimum-Position;
        }
    }
    if (req.method == "PURGE") {
        # Soft: what is purged may be served once more while it is fetched anew.
        set req.http.X-Purged = xkey.softpurge(req.http.xkey-softpurge);
        return (synth(200, "Purged " + req.http.X-Purged));
    }
    if (req.http.X-Refresh) {
        # Fetched anew, with the position that must be in it, and kept in place of what was there.
        set req.hash_always_miss = true;
    }

    # Publishing and administration are not for readers.
    if (req.method != "GET" && req.method != "HEAD" && req.method != "OPTIONS") {
        return (synth(405, "Method Not Allowed"));
    }
    if (req.url !~ "^/(events|slices|snapshots|history)([/?]|$)" &&
        req.url !~ "^/(client\.js|openapi\.json)$") {
        return (synth(404, "Not Found"));
    }

    # What the reader accepts, as one word, so that each coding is kept once; of streams, which have
    # some codings or none, both. Varnish itself knows gzip only, and would ask for nothing else; see
    # vcl_backend_fetch.
    if (req.restarts > 0) {
        # Known: Varnish has made gzip or nothing of what the reader accepts.
    } elseif (req.http.Accept-Encoding ~ "(?i);[ \t]*q=0(\.0*)?[ \t]*(,|$)") {
        set req.http.X-Coding = "identity";
    } elseif (req.url !~ "^/(slices|events)" && req.http.Accept-Encoding ~ "(?i)(^|[, \t])br([;, \t]|$)") {
        set req.http.X-Coding = "br";
    } elseif (req.url ~ "^/(slices|events)" && req.http.Accept-Encoding ~ "(?i)(^|[, \t])zstd([;, \t]|$)" &&
        req.http.Accept-Encoding ~ "(?i)(^|[, \t])gzip([;, \t]|$)") {
        set req.http.X-Coding = "zstd, gzip";
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
    if (req.http.X-Stale == "no") {
        set req.grace = 0s;
    } elseif (req.http.X-Stale == "yes") {
        set req.grace = 365d;
    }
    return (hash);
}

# What is stale is served within stale-while-revalidate, and while the gateway cannot answer, within
# stale-if-error: of these two the longer is Varnish's grace, see vcl_backend_response.
sub vcl_hit {
    if (obj.ttl > 0s || req.http.X-Stale == "yes" || !std.healthy(req.backend_hint)) {
        return (deliver);
    }
    if (obj.ttl + std.duration(obj.http.X-Stale-While-Revalidate, 0s) > 0s) {
        return (deliver);
    }
    set req.http.X-Stale = "no";
    return (restart);
}

sub vcl_miss {
    # It was asked for a moment ago, in vain, and nothing stale is left.
    if (req.http.X-Stale == "yes") {
        return (synth(503, "Unavailable"));
    }
    # Nothing is there that a failure could take the place of.
    if (!req.http.X-Stale && !req.http.X-Refresh) {
        set req.http.X-Cold = "yes";
    }
}

# Without the host: a refresh comes under another name than readers do.
sub vcl_hash {
    hash_data(req.url);
    hash_data(req.http.X-Coding);
    return (lookup);
}

sub vcl_backend_fetch {
    unset bereq.http.X-Refresh;
    unset bereq.http.X-Stale;
    if (bereq.http.X-Coding) {
        set bereq.http.Accept-Encoding = bereq.http.X-Coding;
    }
}

sub vcl_backend_response {
    # Abandoned, or it would stand in front of what is stale.
    if (beresp.status >= 500 && bereq.url ~ "^/snapshots/" && !bereq.http.X-Cold) {
        return (abandon);
    }
    set beresp.http.xkey = beresp.http.Surrogate-Key;

    # What must never be stale (slices) has 0 in both. Varnish's own grace would be 10 s.
    set beresp.http.X-Stale-While-Revalidate =
        regsub(beresp.http.Cache-Control, "^.*stale-while-revalidate=([0-9]+).*$", "\1s");
    set beresp.grace = std.duration(beresp.http.X-Stale-While-Revalidate, 0s);
    set beresp.http.X-Stale-If-Error =
        regsub(beresp.http.Cache-Control, "^.*stale-if-error=([0-9]+).*$", "\1s");
    if (std.duration(beresp.http.X-Stale-If-Error, 0s) > beresp.grace) {
        set beresp.grace = std.duration(beresp.http.X-Stale-If-Error, 0s);
    }
    unset beresp.http.X-Stale-If-Error;
    # Kept beyond that only to be revalidated by its ETag: 304 in place of a body.
    set beresp.keep = 60s;

    # Errors and what may not be kept. Of slices and long-polls no memory of it either, which would switch
    # collapsing off. Whoever waits for a snapshot or a failed page asks for himself: else a crowd would
    # ask one after the other.
    if (beresp.ttl <= 0s || beresp.http.Cache-Control ~ "(?i)no-store|no-cache|private") {
        set beresp.uncacheable = true;
        set beresp.keep = 0s;
        set beresp.ttl = 0s;
        set beresp.grace = 0s;
        if (bereq.url ~ "^/snapshots/" || (bereq.url ~ "^/history/" && beresp.status >= 500)) {
            set beresp.ttl = 1s;
        }
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
    unset resp.http.X-Stale-While-Revalidate;
    unset resp.http.Via;
    unset resp.http.X-Varnish;
}

# Answers of Varnish's own have the form of the gateway's (RFC 9457).
sub vcl_synth {
    # stale-if-error: the gateway answers its probe, but not this request.
    if (resp.status >= 500 && req.url ~ "^/snapshots/" && req.http.X-Stale != "yes" &&
        !req.http.X-Refresh) {
        set req.http.X-Stale = "yes";
        return (restart);
    }
    set resp.http.Content-Type = "application/problem+json";
    set resp.http.Cache-Control = "no-store";
    set resp.http.Access-Control-Allow-Origin = "*";
    if (resp.status == 503) {
        set resp.http.Retry-After = "1";
    }
    set resp.body = {"{"title":""} + resp.reason + {"","status":"} + resp.status + "}";
    return (deliver);
}

# An EventSource never comes back after anything but 200: while the gateway is away a stream says so, and
# keeps the position that its reader has.
sub vcl_backend_error {
    if (bereq.url ~ "^/snapshots/") {
        return (abandon);
    }
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
    set beresp.http.Content-Type = "application/problem+json";
    set beresp.http.Cache-Control = "no-store";
    set beresp.http.Access-Control-Allow-Origin = "*";
    set beresp.http.Retry-After = "1";
    synthetic({"{"title":""} + beresp.reason + {"","status":"} + beresp.status + "}");
    return (deliver);
}
