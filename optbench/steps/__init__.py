"""Steps: each turns one artifact into another."""
