"""The mathematics of Helmholtz machines; needs torch and safetensors alone."""

from rws_ray.core.machine import HelmholtzMachine

__all__ = ["HelmholtzMachine"]
