"""Clips and behaviour to embeddings: encoders, fusion, the item tower, the user tower and their losses."""
