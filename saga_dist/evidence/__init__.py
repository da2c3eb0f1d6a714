"""Evidence: what each loss does to the encoder, and worlds on which the method's worth can be tested fairly."""
