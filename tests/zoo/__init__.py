"""Clean models of many kinds and defects planted in them: what tests and the verdict benchmark run `check` on."""
