"""Commands that need no trainer: one file each, whose `run` reads its own arguments."""
