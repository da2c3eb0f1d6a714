"""Evidence: instruments that show what each loss does to the encoder, and worlds where its worth can be tested."""
