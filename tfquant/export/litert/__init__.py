"""LiteRT export: `.tflite` files with integer kernels."""
