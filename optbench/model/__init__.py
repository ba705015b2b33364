"""What a checkpoint is: body, pooling, tokenizer and weights.

In: a folder in the sentence-transformers layout, of which only safetensors and JSON are read.
Out: its body, pooling, prompts and longest input as data, its tokenizer, and its weights as bytes or as a torch module.
"""
