# The first stage has a compiler for the gateway's one C file; the image has none.
FROM python:3.11-slim AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && python -m venv /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH

WORKDIR /build

# The dependencies first: they change less often than the gateway.
COPY requirements.lock ./
RUN pip install --require-hashes --no-deps -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY gateway ./gateway
COPY nginx ./nginx
# The compiled part is optional elsewhere; an image without it was built wrongly.
RUN pip install --no-build-isolation --no-deps . \
    && cd / && python -c "import gateway.hub._writing"


FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PATH=/opt/gateway/bin:$PATH

WORKDIR /app

COPY --from=build /opt/gateway /opt/gateway
COPY config ./config
RUN useradd --system --uid 10001 --home-dir /data --no-create-home gateway \
    && install -d -o gateway -g gateway -m 0700 /data

# The embedded store keeps its data here; with GATEWAY_REDIS set to a URL it stays empty.
ENV GATEWAY_DATA_DIR=/data
VOLUME /data
USER gateway
EXPOSE 8080

# Of the port and the base path it knows what the environment says, not a TOML file's settings.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "-c", \
    "from os import environ as env; from urllib.request import urlopen; \
    base = env.get('GATEWAY_PORT', '8080') + env.get('GATEWAY_BASE_PATH', ''); \
    urlopen(f'http://127.0.0.1:{base}/livez', timeout=2)"]

# Inside a container loopback reaches nobody; who may reach the port is the network's business.
CMD ["sse-gateway", "serve", "--host", "0.0.0.0"]
