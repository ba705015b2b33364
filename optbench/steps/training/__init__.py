"""What `distill` and `finetune` share: texts, the model in sentence-transformers' form, its trainer, and what is saved."""
