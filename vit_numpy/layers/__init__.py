"""The Vision Transformer's layers, one file each."""
