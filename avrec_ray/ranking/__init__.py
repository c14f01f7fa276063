"""Candidates to a ranking: the attention reranker, the policy after it, and the reasons given."""
