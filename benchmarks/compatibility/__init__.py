"""Compatibility table: every KerasHub backbone and keras.applications through the whole toolkit."""
