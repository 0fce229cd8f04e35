"""Perplexity of a causal language model on a long text."""
