"""Checkpoints: what a folder of weights, configuration and tokenizer holds.

In: a folder in the sentence-transformers layout. Out: its body, pooling, prompts and longest input as data; its tokenizer; its weights as
tensors or as a torch module. Only safetensors and JSON are read.
"""
