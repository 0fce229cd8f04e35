"""GPTQ (Frantar et al., 2022): rounding of weights that compensates errors in later inputs."""
