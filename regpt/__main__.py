"""`python -m regpt` is `regpt`."""

import sys

from regpt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
