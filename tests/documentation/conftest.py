"""The tests of the documentation share how its pages are read (`documented`), with those of the server too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
