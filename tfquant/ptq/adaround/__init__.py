"""AdaRound (Nagel et al., 2020, "Up or Down?"): learned rounding of weights, layer by layer."""
