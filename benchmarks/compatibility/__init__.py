"""Compatibility table: every KerasHub backbone and keras.applications through the whole toolkit."""

# Names of the checks of a model, which are the columns of the table.
CHECKS = ("sites", "float", "16 bits", "8 bits", "gradients", "training", "storing", "onnx")
