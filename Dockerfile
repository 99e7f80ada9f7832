# One recipe for CPU and CUDA. PyTorch's wheels bring the CUDA runtime, so the base is plain Python.
#
#   docker build -t harmonizer:cpu .
#   docker build -t harmonizer:cuda --build-arg DEVICE=cuda .
#   docker build -t harmonizer:cuda126 --build-arg DEVICE=cuda --build-arg CUDA=126 .
#
# CUDA=126 is for GPUs before Turing and for drivers before 580 (docs/how-to/containers.md).
# BASE_IMAGE needs Python 3.10 to 3.13 with venv; tools/base_image.sh prints it with its digest, and
# published images are built from that. TORCH_INDEX overrides where PyTorch comes from.
# PIP_CERT, PIP_INDEX_URL and PIP_FIND_LINKS reach pip where a mirror or a proxy is needed.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG DEVICE=cpu
ARG CUDA
ARG TORCH_INDEX
ARG PIP_CERT
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_RETRIES=1
WORKDIR /src
COPY constraints.txt ./
RUN python3 -m venv /opt/harmonizer && \
    case "${DEVICE}-${CUDA}" in \
        cpu-) index=https://download.pytorch.org/whl/cpu ;; \
        cuda-) index=https://pypi.org/simple ;; \
        cuda-[1-9][0-9][0-9]) index=https://download.pytorch.org/whl/cu${CUDA} ;; \
        *) echo "DEVICE is cpu or cuda, and CUDA a number such as 126, not '${DEVICE}' and '${CUDA}'" >&2; exit 64 ;; \
    esac && \
    /opt/harmonizer/bin/pip install --no-deps --extra-index-url "${TORCH_INDEX:-$index}" \
        -c constraints.txt torch
# Dependencies before code: a change of the code does not install them again.
COPY setup.cfg setup.py pyproject.toml LICENSE README.md ./
COPY harmonizer/__init__.py harmonizer/__init__.py
RUN mkdir pipelines && touch pipelines/__init__.py && \
    /opt/harmonizer/bin/pip install -c constraints.txt . bids-validator-deno
COPY harmonizer harmonizer
COPY pipelines pipelines
ARG VERSION=0.0
RUN rm -rf build ./*.egg-info && \
    SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION}" \
        /opt/harmonizer/bin/pip install --no-deps --force-reinstall . && \
    /opt/harmonizer/bin/harmonizer --version

FROM ${BASE_IMAGE}
ARG BASE_IMAGE
ARG DEVICE=cpu
ARG CUDA
ARG VERSION=0.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="brain-harmonizer" \
      org.opencontainers.image.description="A BIDS App that harmonizes brain MRI across scanners" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.brain-harmonizer.device="${DEVICE}${CUDA}"
# HOME and USER: an unknown UID (docker --user) has neither, and libraries ask for both.
# MALLOC_*: keep freed memory instead of faulting it in again at each training step.
# HARMONIZER_CONTAINER*: what dataset_description.json of the results tells about the image.
# The last two let the NVIDIA runtime show its devices; without one they mean nothing.
ENV HOME=/tmp \
    USER=harmonizer \
    LC_ALL=C.UTF-8 \
    PATH=/opt/harmonizer/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MPLBACKEND=Agg \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    DENO_DIR=/tmp/deno \
    NO_ET=1 \
    NIPYPE_NO_ET=1 \
    OMP_NUM_THREADS=1 \
    MKL_NUM_THREADS=1 \
    ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1 \
    MALLOC_MMAP_THRESHOLD_=4294967296 \
    MALLOC_TRIM_THRESHOLD_=8589934592 \
    MALLOC_TOP_PAD_=268435456 \
    HARMONIZER_CONTAINER=docker \
    HARMONIZER_CONTAINER_TAG=harmonizer:${VERSION} \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build /opt/harmonizer /opt/harmonizer
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["/opt/harmonizer/bin/harmonizer"]
