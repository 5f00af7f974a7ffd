# SPDX-License-Identifier: GPL-2.0-or-later
"""Start the lab and play with it: `make lab`, or `python3 -m tests.lab.shell [FOLDER-OF-DEBS]`."""

import code
import sys
from pathlib import Path

from tests.lab import Lab


def main(argv: list[str]) -> int:
    """Without a folder of packages the guests are without ours."""
    with Lab(Path(argv[1]) if argv[1:] else None, progress=print) as lab:
        names = {"lab": lab, "backend": lab.backend, "frontend": lab.frontend}
        code.interact(f"Python with {', '.join(names)}; end with Ctrl-D", local=names)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
