"""The training loop: coordinator, rollout sources, rollout buffer, pair ledger, step metrics and evaluation."""
