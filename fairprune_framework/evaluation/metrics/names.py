"""Names of the metrics, as rows, items and files carry them."""

DIVERGENCE = "next-token-divergence"
ACTIVATION_DIFFERENCE = "activation-difference"
SEQUENCE_GAP = "sequence-gap"
STEREOTYPE_PREFERENCE = "stereotype-preference"
SHARED_PREFERENCE = "shared-token-preference"
MATCHED_PREFERENCE = "length-matched-preference"
SHARED_PERPLEXITY = "shared-token-perplexity"
LEGITIMATE_MARGIN = "legitimate-margin"
VALENCE_GAP = "valence-gap"
GROUP_VALENCE = "valence-of-group"
GROUP_PERPLEXITY = "perplexity-of-group"
PERPLEXITY_GAP = "perplexity-gap"
SENTIMENT_DISTANCE = "sentiment-distance"
NEGATIVE_SHARE = "negative-share-of-group"
NEGATIVE_GAP = "negative-share-gap"
PERPLEXITY = "perplexity"
KL_TO_ORIGINAL = "kl-to-original"


def to_controls(metric: str) -> str:
    """The metric of demographic contrasts as a ratio to the same of controls."""
    return f"{metric}-to-controls"


PREFERENCES = (SHARED_PREFERENCE, STEREOTYPE_PREFERENCE, MATCHED_PREFERENCE)
"""Shares of pairs in which the stereotyping sentence is preferred."""
CONTRAST_METRICS = (DIVERGENCE, ACTIVATION_DIFFERENCE, SEQUENCE_GAP, *PREFERENCES, LEGITIMATE_MARGIN, VALENCE_GAP)
"""Measured on contrasts, and ideally 0 or a half."""
LANGUAGE_METRICS = (PERPLEXITY, KL_TO_ORIGINAL)
"""Measured on the judging half of the calibration text."""

IDEALS = {DIVERGENCE: 0.0, SEQUENCE_GAP: 0.0, SHARED_PREFERENCE: 0.5, STEREOTYPE_PREFERENCE: 0.5}
"""The metrics that plans can be ranked by, each with the value of a fair model."""
