"""Tables of results: variants and seeds of one configuration, each cell an ordinary run, and their summary."""
