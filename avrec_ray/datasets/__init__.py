"""Outside data into our tables: synthetic (renders real media), movielens, and the user's own Parquet."""
