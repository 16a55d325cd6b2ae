"""Estimators of the gradient, one a file; rws_ray.estimators has the table of them."""

from rws_ray.core.estimators.rws import add_rws_gradients
from rws_ray.core.estimators.weighted import Estimator, InputMoments, StepInfo

__all__ = ["Estimator", "InputMoments", "StepInfo", "add_rws_gradients"]
