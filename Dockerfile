# The server as a container: `docker build -t vitrail .`, or with GPU support
# `docker build --target gpu -t vitrail:gpu .`. Mount the model repository at /models.
ARG BASE=python:3.11-slim

FROM ${BASE} AS source
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client client
COPY server server

# One virtual environment per variant; only it is copied into the final image.
FROM source AS build-cpu
RUN python3 -m venv /opt/vitrail \
    && /opt/vitrail/bin/pip install --no-cache-dir --constraint constraints.txt ".[server]"

FROM source AS build-gpu
RUN python3 -m venv /opt/vitrail \
    && /opt/vitrail/bin/pip install --no-cache-dir --constraint constraints.txt ".[server-gpu]"

FROM ${BASE} AS runtime
RUN useradd --system --uid 10001 --create-home vitrail
ENV PATH=/opt/vitrail/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    VITRAIL_MODEL_REPOSITORY=/models
EXPOSE 8001 8002
VOLUME /models
STOPSIGNAL SIGTERM
# Loading large models takes a while; until then the server is up and NOT_SERVING. With mutual TLS the check
# needs a certificate: docker run --health-cmd "vitrail-healthcheck --cert FILE --key FILE".
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["vitrail-healthcheck"]
CMD ["vitrail-server"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/vitrail /opt/vitrail
USER 10001

FROM runtime AS cpu
COPY --from=build-cpu /opt/vitrail /opt/vitrail
USER 10001
