"""Contract suites for plugin authors, tiny models and a model with planted bias."""
