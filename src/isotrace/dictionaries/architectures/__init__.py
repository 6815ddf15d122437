"""Architectures: what features read and write. One file each, of its name; found by looking at this folder."""
