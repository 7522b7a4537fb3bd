"""Arms, metrics and confidence intervals. Everything is judged in pairs: the same eps with and without a predictor."""
