"""Rewrites of the network apart from quantizers: replaced operations, moved parameters."""
