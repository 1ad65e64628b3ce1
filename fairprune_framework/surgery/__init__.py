"""Applying a plan to a model: masks, removal, saving, verification."""
