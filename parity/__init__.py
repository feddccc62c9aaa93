"""Proves that the two Vision Transformers are the same, and compares how they train."""
