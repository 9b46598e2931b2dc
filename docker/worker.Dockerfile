# Celery workers and the agent of a site: worker, agent, embed, sample, verify. CPU unless told otherwise:
#   --build-arg TORCH_INDEX=https://pypi.org/simple   the CUDA build, with NVIDIA's libraries
# Pin the base by its digest where you build: --build-arg PYTHON_IMAGE=python:...@sha256:...
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# The lock names torch without a build tag; of one version, pip prefers the tagged build (+cpu).
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /app
RUN python -m venv --without-pip /opt/venv
COPY docker/requirements-worker.txt ./
RUN python -m pip --python /opt/venv/bin/python install \
    --extra-index-url "${TORCH_INDEX}" --requirement requirements-worker.txt
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY worker worker
RUN python -m pip --python /opt/venv/bin/python install --no-deps --no-build-isolation --editable . \
    && /opt/venv/bin/python -m compileall -q core worker

FROM ${PYTHON_IMAGE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="FedHypeVAE worker and agent" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN groupadd --system --gid 10001 fhv \
    && useradd --system --uid 10001 --gid 10001 --home-dir /tmp --shell /usr/sbin/nologin fhv \
    && install -d -o fhv -g fhv -m 0700 /var/lib/fedhypevae
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
USER 10001:10001
VOLUME /var/lib/fedhypevae
# No health check: a worker that cannot go on ends, and is started again; nothing listens in it.
HEALTHCHECK NONE
ENTRYPOINT ["fedhypevae"]
CMD ["worker", "--help"]
