"""`python -m working_papers.daily.search` is the background process, see `background`."""

import sys

from working_papers.daily.search.background import main

sys.exit(main())
