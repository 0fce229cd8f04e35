"""The parts of run_glue.py."""
