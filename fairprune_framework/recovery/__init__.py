"""Recovery training after pruning: `fairprune finetune`."""
