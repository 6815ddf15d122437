"""Ways to adapt a subject, one file each."""
