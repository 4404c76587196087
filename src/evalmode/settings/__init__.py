"""What a project sets for evalmode in its pyproject.toml, and which clauses and codes count. Knows no torch."""
