# syntax=docker/dockerfile:1
# The server for one bundle, on a CPU or a CUDA GPU:
#   docker build --target cpu -t meet:cpu .
#   docker run --read-only --tmpfs /tmp:exec -e MEET_USER_KEYS -v ./bundles/demo:/bundle:ro -p 127.0.0.1:8000:8000 meet:cpu
# Behind a package mirror: `docker build --secret id=pip.conf,src=FILE`; nothing of that file stays in the image.
# Versions come from requirements/*.lock, with hashes; nothing is resolved here.

ARG BASE=python:3.11-slim-bookworm
FROM $BASE AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/meet
WORKDIR /src
COPY requirements requirements

FROM build AS build-cpu
# torch's CPU build from the configured index where that has it, else from PyTorch's own, as requirements/setup.sh does.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    ( /opt/meet/bin/pip install -q --no-deps -r requirements/torch-cpu.txt 2>/dev/null \
     || /opt/meet/bin/pip install -q --no-deps --index-url https://download.pytorch.org/whl/cpu -r requirements/torch-cpu.txt ) \
 && /opt/meet/bin/pip install -q --no-deps --require-hashes -r requirements/cpu.lock
COPY . .
RUN /opt/meet/bin/pip install -q --no-deps --no-build-isolation . ./clients/python

FROM build AS build-cuda
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/meet/bin/pip install -q --no-deps --require-hashes -r requirements/cuda.lock
COPY . .
RUN /opt/meet/bin/pip install -q --no-deps --no-build-isolation . ./clients/python

FROM $BASE AS run
# vLLM compiles its sampler for the processor at hand, and Triton its kernels: both want a compiler.
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libgomp1 libnuma1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home meet \
 && install -d -o meet -g meet /registry
# The root may be read-only: what is written goes under /tmp, a tmpfs, but for preferences that are changed while serving.
# Those are kept in /registry, for as long as a volume there is.
VOLUME /registry
ENV PATH=/opt/meet/bin:$PATH HOME=/tmp XDG_CACHE_HOME=/tmp/cache VLLM_CACHE_ROOT=/tmp/vllm HF_HUB_OFFLINE=1 \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor TRITON_CACHE_DIR=/tmp/triton VLLM_NO_USAGE_STATS=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=180s --retries=3 \
  CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["meet", "serve"]
CMD ["/bundle", "--host", "0.0.0.0", "--set", "registry=/registry"]

FROM run AS cuda
COPY --from=build-cuda /opt/meet /opt/meet

# The last target is what a plain `docker build .` makes.
FROM run AS cpu
COPY --from=build-cpu /opt/meet /opt/meet
