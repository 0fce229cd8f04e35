"""BERT, RoBERTa, DistilBERT and MobileBERT, their sizes, heads and weights; `modeling` makes whole
models of them.
"""
