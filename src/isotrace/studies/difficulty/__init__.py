"""What makes a prediction hard: how deep it is decided, what is known and not done, what an edit would take."""
