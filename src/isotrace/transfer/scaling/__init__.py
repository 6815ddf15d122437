"""How loss falls with parameters and tokens, and whether a task's error falls with it."""
