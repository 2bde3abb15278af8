import sys
from pathlib import Path

# asv finds this package and nothing beside it.
sys.path.insert(0, str(Path(__file__).parent.parent))
