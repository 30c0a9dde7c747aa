"""The service: workers that share one study of recipes."""

import importlib
import sys
from pathlib import Path

# ``python -m`` looks first where it is started, and there a file finetune.py to hand in may lie:
# the package of that name is the one beside this.
_BESIDE = str(Path(__file__).parents[1])
sys.path.insert(0, _BESIDE)
try:
    importlib.import_module("finetune")
finally:
    sys.path.remove(_BESIDE)
