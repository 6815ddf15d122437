"""Pages of the transfer laboratory."""
