"""What is learned: where in noise space to start. One family of predictors a file."""

from pahi.predictors.base import Kind, NoisePredictor
from pahi.predictors.gaussian import GaussianPredictor
from pahi.predictors.lowrank import LowRankPredictor
from pahi.predictors.mixture import MixturePredictor
from pahi.predictors.preserving import PreservingPredictor
from pahi.predictors.residual import ResidualPredictor
from pahi.predictors.selected import SelectedPredictor
from pahi.predictors.spline import SplinePredictor

__all__ = [
    "GaussianPredictor",
    "Kind",
    "LowRankPredictor",
    "MixturePredictor",
    "NoisePredictor",
    "PreservingPredictor",
    "ResidualPredictor",
    "SelectedPredictor",
    "SplinePredictor",
]
