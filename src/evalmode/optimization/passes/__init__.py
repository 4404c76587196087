"""Graph rewrites that keep the function: one file per pass."""
