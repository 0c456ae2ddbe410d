"""Notices what opening a file must never do, by Python's own audit events."""

import sys
from contextlib import contextmanager

FORBIDDEN = {
    "code.__new__", "compile", "ctypes.dlopen", "exec", "import", "marshal.load", "marshal.loads",
    "os.exec", "os.fork", "os.forkpty", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename",
    "os.spawn", "os.startfile", "os.system", "pickle.find_class", "pty.spawn", "shutil.rmtree",
    "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "urllib.Request",
}  # fmt: skip

_seen = None
_is_installed = False


def _note(event, arguments):
    if _seen is None:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in FORBIDDEN or writes:
        _seen.append((event, str(arguments)[:200]))


@contextmanager
def watched():
    """Yields a list that fills with whatever happened; a hook cannot be taken away again."""
    global _seen, _is_installed
    if not _is_installed:
        sys.addaudithook(_note)
        _is_installed = True
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None
