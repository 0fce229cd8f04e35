"""Traced graphs.

Tracing, analysis of edges, planning of sites, and replay with edited edges.
"""
