"""Models: loading, architecture, tokenizer, and readout of hidden states as logits."""
