"""Example programs on KerasHub's language and speech models; not part of the wheel."""
