"""``python -m hf_stages`` is ``hf-stages``."""

import sys

from hf_stages.commands.cli import main

sys.exit(main())
