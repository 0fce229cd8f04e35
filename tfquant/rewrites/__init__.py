"""Replacements of operations of the network, apart from quantizers."""
