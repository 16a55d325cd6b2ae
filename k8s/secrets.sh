#!/usr/bin/env bash
# Prints Secrets with fresh random passwords; nothing of them touches the disk. For the development overlay all four:
#   k8s/secrets.sh | kubectl create -f -
# For a site whose database and object store have Secrets of their own:
#   k8s/secrets.sh mlflow-admin mlflow-client | kubectl create -f -
# (`create`, not `apply`: it refuses to put new passwords in place of those that are in use.)
set -euo pipefail

random() { openssl rand -hex 24; }

settings() {
  case "$1" in
    mlflow-admin)
      echo "MLFLOW_AUTH_ADMIN_USERNAME=admin"
      echo "MLFLOW_AUTH_ADMIN_PASSWORD=$(random)"
      echo "MLFLOW_FLASK_SERVER_SECRET_KEY=$(random)" ;;
    mlflow-client)
      echo "MLFLOW_TRACKING_USERNAME=rws"
      echo "MLFLOW_TRACKING_PASSWORD=$(random)" ;;
    mlflow-database)
      echo "PGHOST=postgres"
      echo "PGPORT=5432"
      echo "PGSSLMODE=disable"
      echo "PGDATABASE=mlflow"
      echo "PGUSER=mlflow"
      echo "PGPASSWORD=$(random)" ;;
    object-store)
      echo "MLFLOW_S3_ENDPOINT_URL=http://objects:7070"
      echo "MLFLOW_ARTIFACTS_DESTINATION=s3://mlflow"
      echo "AWS_DEFAULT_REGION=us-east-1"
      echo "AWS_ACCESS_KEY_ID=mlflow"
      echo "AWS_SECRET_ACCESS_KEY=$(random)" ;;
    *)
      echo "unknown Secret $1; there are mlflow-admin, mlflow-client, mlflow-database, object-store" >&2
      exit 2 ;;
  esac
}

if [ $# -eq 0 ]; then set -- mlflow-admin mlflow-client mlflow-database object-store; fi
for name in "$@"; do
  values="$(settings "$name")"
  echo "---"
  kubectl create secret generic "$name" --namespace rws --from-env-file=/dev/stdin --dry-run=client --output=yaml \
    <<< "$values"
done
