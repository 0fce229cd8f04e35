"""The parts of run_squad.py: flags, data, networks, and one module for each thing a run can do."""
