"""Sizes of the model that runs of run_glue.py train in tests."""

TINY = {
    "num_hidden_layers": 1,
    "hidden_size": 24,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
QUANTIZED = "--qmethod symmetric_uniform --qmethod-act asymmetric_uniform"
