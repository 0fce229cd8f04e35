"""Modules shared by run_squad.py and run_glue.py: settings, logging, checks, training, resuming."""
