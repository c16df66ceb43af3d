"""Executable reference models: what each part means, in as few lines as possible."""
