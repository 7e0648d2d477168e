"""Scale structures: one small class per file, all behind `Scale`."""

from tmixture.scales.base import Scale
from tmixture.scales.diag import DiagonalScale
from tmixture.scales.full import FullScale
from tmixture.scales.lowrank import LowRankScale
from tmixture.scales.spherical import SphericalScale
from tmixture.scales.tied import TiedScale

STRUCTURES: dict[str, type[Scale]] = {
    structure.covariance_type: structure
    for structure in (FullScale, TiedScale, DiagonalScale, SphericalScale, LowRankScale)
}

__all__ = ["STRUCTURES", "DiagonalScale", "FullScale", "LowRankScale", "Scale", "SphericalScale", "TiedScale"]
