"""Which checkpoint to take for a property of one's own."""
