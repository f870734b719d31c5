"""Puts this folder on the path, for its tests share `by_hand.py` (the suite loads tests as files,
not as a package).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
