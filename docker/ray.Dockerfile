# The image of Ray's nodes and of jobs. Two targets, the same but for torch:
#   docker build -f docker/ray.Dockerfile --target cpu  -t rws-ray:0.1.0 .
#   docker build -f docker/ray.Dockerfile --target cuda -t rws-ray:0.1.0-cuda .
# The base's digest pins it for good: make images BASE=… (docs/kubernetes.md).
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE} AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The dependencies alone first: they stay in Docker's cache while the code changes.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt

FROM build AS build-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0+cpu \
    -r requirements.txt
COPY README.md LICENSE ./
COPY jobs jobs
COPY tune_spaces tune_spaces
COPY rws_ray rws_ray
RUN pip install --no-deps .

# The wheels of the package index bring CUDA's libraries; the driver comes from the node.
FROM build AS build-cuda
RUN pip install -c constraints.txt torch==2.13.0 -r requirements.txt
COPY README.md LICENSE ./
COPY jobs jobs
COPY tune_spaces tune_spaces
COPY rws_ray rws_ray
RUN pip install --no-deps .

FROM ${BASE} AS runtime
RUN useradd --uid 1000 --user-group --create-home rws
WORKDIR /opt/rws
COPY jobs jobs
COPY tune_spaces tune_spaces
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 GIT_PYTHON_REFRESH=quiet \
    RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
USER 1000:1000
CMD ["python", "-m", "rws_ray.doctor"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/venv /opt/venv

FROM runtime AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
