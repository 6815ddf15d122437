"""What checkpoints reached on tasks, how far that can be foretold, and how a predictor of it is judged."""
