"""Streaming contrasts through a model into statistics."""
