"""What is learned: where in noise space to start. One family of predictors a file."""

from pahi.predictors.base import NoisePredictor
from pahi.predictors.gaussian import GaussianPredictor
from pahi.predictors.residual import ResidualPredictor

__all__ = ["GaussianPredictor", "NoisePredictor", "ResidualPredictor"]
