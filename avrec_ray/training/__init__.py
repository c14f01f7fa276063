"""The training loop and what it eats: histories, batches, steps, checkpoints. Knows torch, not Ray."""
