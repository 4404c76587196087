"""Watch a forward pass without changing it: events, places, wide evaluation, fingerprints, state kept and put back."""
