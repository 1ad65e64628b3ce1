"""`python -m fairprune_framework` is `fairprune`."""

import sys

from fairprune_framework.cli.main import main

sys.exit(main())
