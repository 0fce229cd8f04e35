"""Names of the range methods; `calib.methods` has a module for each."""

NAMES = (
    "max",
    "percentile",
    "mse",
    "entropy",
    "moving_average",
    "current_minmax",
    "token_wise",
    "cross_entropy",
)
# Those that work on any tensor; the others are for logits.
GENERAL = tuple(name for name in NAMES if name != "cross_entropy")
