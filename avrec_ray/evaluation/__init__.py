"""What was held out, and how well rankings find it: splits, metrics, baselines, reports."""
