"""Which checkpoint transfers to a task, and why."""
