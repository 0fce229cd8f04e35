"""Modules of run_squad.py: flags, data, networks, and one for each stage of a run."""
