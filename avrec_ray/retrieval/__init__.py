"""Query to candidates: the vector index and the matcher."""
