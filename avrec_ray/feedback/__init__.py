"""What users do, kept: one event checked, stored durably and once, read back as a history."""
