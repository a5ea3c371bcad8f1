# syntax=docker/dockerfile:1
# The environment of `make setup`, for CPUs: mmcv's operators are compiled without CUDA.
#     docker build -t dq-launcher .
#     docker run --rm --shm-size 2g -v "$PWD:/work" dq-launcher train CONFIG
FROM python:3.11-slim AS base
# g++ compiles mmcv-full, and at run time the kernels of dq.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ git make \
    && rm -rf /var/lib/apt/lists/*

FROM base AS launcher
WORKDIR /opt/dq-launcher
COPY . .
# The compiled wheel stays in the cache of the builder, for the next build.
RUN --mount=type=cache,target=/root/.cache make setup
ENV PATH=/opt/dq-launcher/.venv/bin:$PATH
WORKDIR /work
ENTRYPOINT ["python", "-m", "launcher"]
CMD ["--help"]
