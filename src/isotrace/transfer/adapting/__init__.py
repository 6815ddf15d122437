"""A subject made to predict a property: five methods, the head they share, training, scores beside baselines."""
