# The image of the MLflow server, with accounts, PostgreSQL and S3:
#   docker build -f docker/tracking.Dockerfile -t rws-tracking:0.1.0 .
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE} AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
RUN pip install -c constraints.txt "mlflow[auth]" psycopg2-binary boto3

FROM ${BASE} AS runtime
RUN useradd --uid 1000 --user-group --create-home mlflow
WORKDIR /home/mlflow
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 GIT_PYTHON_REFRESH=quiet \
    MLFLOW_DISABLE_TELEMETRY=true
COPY --from=build /opt/venv /opt/venv
USER 1000:1000
CMD ["mlflow", "server", "--help"]
