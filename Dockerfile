# One image for every command:
#   docker build --target cpu --build-arg TORCH_INDEX=URL .
#   docker build --target cuda .
# TORCH_INDEX is where pip looks for torch besides its own index.  Without one it takes a CUDA
# build, which runs on CPUs too, but makes an image of gigabytes: name PyTorch's index of CPU
# builds (its site has the address) for a small one.

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS builder
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /src
COPY deploy/requirements.txt deploy/
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r deploy/requirements.txt
COPY . .
RUN pip install --no-deps --no-build-isolation . && pip check

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS runtime
# New volumes take their owner from these directories.
RUN useradd --uid 10001 --create-home runes \
    && install -d -o runes -g runes /app /artifacts /cache
COPY --from=builder /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 XDG_CACHE_HOME=/cache MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["python", "-m"]
CMD ["hpo.worker"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN python -c "import sys, torch; sys.exit(torch.version.cuda is None and 'error: pip found a CPU build of torch; write --build-arg TORCH_INDEX= (PyPI has CUDA builds), or --build-arg TORCH_INDEX=URL')"

FROM runtime AS cpu
