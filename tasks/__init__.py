"""Tasks: data, features and metrics, with no quantization in them."""
