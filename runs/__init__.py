"""What run_squad.py and run_glue.py share.

Settings, narration, resuming, and how batches are dealt out.
"""
