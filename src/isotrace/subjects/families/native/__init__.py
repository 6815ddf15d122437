"""Architectures that transformers lacks, written anew: layers go by the names of the published checkpoints, so that
their folders load, and none of the code that lies in those folders runs."""
