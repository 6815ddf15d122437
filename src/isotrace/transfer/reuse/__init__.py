"""How much of what a pretrained subject knew an adapted one uses: its old dictionary read in the new weights, features
against what they leave unexplained, and where the weights have gone."""
