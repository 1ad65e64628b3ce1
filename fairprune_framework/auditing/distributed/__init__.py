"""Audits over several processes: assignment, reduction, checkpoints."""
