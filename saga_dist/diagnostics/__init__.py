"""Evidence: worlds on which the method can be tested fairly, and what could be gained there at best."""
