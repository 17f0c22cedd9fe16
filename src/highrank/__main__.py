"""``python -m highrank`` is the command ``highrank``."""

import sys

from highrank.cli.main import main

sys.exit(main())
