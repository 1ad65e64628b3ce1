"""Names of the metrics, as rows, items and files carry them."""

DIVERGENCE = "next-token-divergence"
ACTIVATION_DIFFERENCE = "activation-difference"
SEQUENCE_GAP = "sequence-gap"
STEREOTYPE_PREFERENCE = "stereotype-preference"
PERPLEXITY = "perplexity"
KL_TO_ORIGINAL = "kl-to-original"

CONTRAST_METRICS = (DIVERGENCE, ACTIVATION_DIFFERENCE, SEQUENCE_GAP, STEREOTYPE_PREFERENCE)
"""Measured on contrasts."""
LANGUAGE_METRICS = (PERPLEXITY, KL_TO_ORIGINAL)
"""Measured on the judging half of the calibration text."""
