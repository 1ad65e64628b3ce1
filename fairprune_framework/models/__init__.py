"""Loading a model, recognising its architecture, reading out its logits."""
