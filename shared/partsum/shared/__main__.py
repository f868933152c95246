"""``python -m partsum.shared`` is the program ``partsum``."""

import sys

from partsum.shared.cli import main

if __name__ == "__main__":
    sys.exit(main())
