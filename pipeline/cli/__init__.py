"""The command line. One command, one module; heavy imports happen inside the commands, so that `--help` is quick.

Exit status: 0 done, 1 it went wrong on the way (no Redis, say), 2 a mistake in what was asked (flags, files,
bundles, settings), 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys

from pipeline.cli import interrupt

# Read once, when numpy is imported: one thread a process, cores are used by more processes (DESIGN section 3).
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def main() -> None:
    """What `statebelt` runs."""
    interrupt.hold_back()
    try:
        from pipeline.cli.app import app

        try:
            app()
        except SystemExit:
            interrupt.check()
            raise
    except KeyboardInterrupt:  # between imports, or nobody met it on its way; the others are the app's
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        from pipeline.cli.console import abandon_output, say_error

        abandon_output()
        say_error(f"the output could not be written: {error.strerror}. What came of it is not whole")
        sys.exit(1)
    finally:
        interrupt.release()
