"""Where parts of a task are done, one file each."""
