"""Where two curves of loss against scale cross: what is compared (`Curve`), from `allometry.laws.curve`."""

from allometry.laws.curve import Curve

__all__ = ["Curve"]
