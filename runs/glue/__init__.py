"""Modules of run_glue.py."""
