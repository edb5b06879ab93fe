"""The shell's way in, one module a command."""
