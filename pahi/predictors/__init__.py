"""What is learned: where in noise space to start."""

from pahi.predictors.gaussian import NoisePredictor

__all__ = ["NoisePredictor"]
