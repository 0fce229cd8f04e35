"""Commands of `python -m tfquant`, one module each, with `add` (its flags) and `run`.

What a command needs to run, such as TensorFlow, is imported when it runs: `--help` does without.
"""
