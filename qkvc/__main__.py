"""`python -m qkvc`."""

import sys

from qkvc.cli import main

sys.exit(main())
