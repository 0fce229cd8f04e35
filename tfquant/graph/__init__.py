"""Traced graphs.

Capture them, find out what each edge is, decide what to quantize, and emit them again with edges
changed.
"""
