"""Jobs that do nothing, for as long as they are told; started in processes of their own."""

import time
from pathlib import Path


def logged(args, log):
    """`say WORDS`, `fail WORDS` or `wait SECONDS`; notes when it began and ended."""
    verb, word = args
    notes = Path(log).with_suffix(".times")
    notes.write_text(f"{time.time()}\n")
    Path(log).write_text("".join(f"line {i}\n" for i in range(30)) + f"{verb} {word}\n")
    if verb == "wait":
        time.sleep(float(word))
    if verb == "fail":
        raise SystemExit(3)
    with notes.open("a") as file:
        file.write(f"{time.time()}\n")
