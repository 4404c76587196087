"""What evaluation and serving run: the calling rule, signatures, and predictors."""
