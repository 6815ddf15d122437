"""What a model goes through while it is trained."""
