"""What the doctor asks of MLflow: whether it answers, whether to us, and whether to anybody."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from rws_ray.tracking.store import Tracking, answering, connect
from rws_ray.tracking.versions import model_names

SEARCH = "/api/2.0/mlflow/registered-models/search"


class TrackingState(NamedTuple):
    """An MLflow store that let us in.

    Attributes:
        label: its URI without credentials.
        num_models: registered names that we may see.
        is_open: whether it lets in whoever says no name; False for an embedded store, which has no door.
        clock_offset: its clock minus ours in seconds; None for an embedded store.
    """

    label: str
    num_models: int
    is_open: bool
    clock_offset: float | None


def tracking_state(home: Path) -> TrackingState:
    """The store of `home`, asked as a command asks it.

    Raises:
        ConfigError, InfrastructureError: where it is malformed, away, or refuses us; the message has the cure.
    """
    tracking = connect(home)
    num_models = len(model_names(tracking))
    if tracking.uri.startswith("sqlite:"):
        return TrackingState(tracking.label, num_models, False, None)
    is_open, clock_offset = _as_nobody(tracking)
    return TrackingState(tracking.label, num_models, is_open, clock_offset)


def _as_nobody(tracking: Tracking) -> tuple[bool, float | None]:
    """Whether the server answers without credentials, and its clock's offset by the answer's date (whole seconds)."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import MlflowHostCreds, http_request

    ours = get_default_host_creds(tracking.uri)
    nobody = MlflowHostCreds(
        tracking.label,
        ignore_tls_verification=ours.ignore_tls_verification,
        server_cert_path=ours.server_cert_path,
    )
    with answering(tracking.uri):
        response = http_request(nobody, SEARCH, "GET", max_retries=0, timeout=10, raise_on_status=False)
    told = response.headers.get("Date")
    offset = parsedate_to_datetime(told).timestamp() + 0.5 - time.time() if told else None
    return response.status_code == 200, offset
