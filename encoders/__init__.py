"""Transformer encoders: sizes, heads and weights of BERT, RoBERTa, DistilBERT and MobileBERT;
`modeling` builds whole models of them.
"""
