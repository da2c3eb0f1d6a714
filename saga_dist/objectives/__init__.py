"""Rewards, advantages, token masks and losses as pure functions of plain numbers and tensors."""
