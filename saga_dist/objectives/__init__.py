"""Pure functions from plain numbers and tensors to rewards, advantages, masks and losses."""
