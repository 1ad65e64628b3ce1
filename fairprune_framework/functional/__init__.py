"""Pure maths on arrays: numpy and torch alone."""
