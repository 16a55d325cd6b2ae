"""Make the account that jobs use, or give it the Secret's password. The Job mlflow-users runs this as administrator."""

import os

from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

username, password = os.environ["CLIENT_USERNAME"], os.environ["CLIENT_PASSWORD"]
client = AuthServiceClient(os.environ["MLFLOW_TRACKING_URI"])
try:
    client.create_user(username, password)
    print(f"made {username}")
except MlflowException as error:
    if error.error_code != "RESOURCE_ALREADY_EXISTS":
        raise
    client.update_user_password(username, password)
    print(f"{username} was there; it has the Secret's password now")
