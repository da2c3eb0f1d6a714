"""Tables: variants and seeds of one configuration, every cell an ordinary run, and what they say together."""
