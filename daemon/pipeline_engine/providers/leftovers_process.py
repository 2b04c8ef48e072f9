"""The program that cleans up behind a daemon that was killed: see leftovers.py.

Its standard input is a pipe whose other end only the daemon holds; each line is `[SIGN, KIND, NAME]`, where "+" notes
a process group or a directory and "-" crosses it out. At the end of the file, what is still noted goes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from contextlib import suppress


def main() -> None:
    noted: dict[str, set[int | str]] = {"group": set(), "directory": set()}
    for line in sys.stdin:
        sign, kind, name = json.loads(line)
        (noted[kind].add if sign == "+" else noted[kind].discard)(name)
    for group in noted["group"]:
        assert isinstance(group, int)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for directory in noted["directory"]:
        assert isinstance(directory, str)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
