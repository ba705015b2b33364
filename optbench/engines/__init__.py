"""Engines: each opens an artifact and embeds token ids."""
