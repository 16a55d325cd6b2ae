"""Helmholtz machines trained by Reweighted Wake-Sleep, on any number of workers."""

__version__ = "0.1.0"
