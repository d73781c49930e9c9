"""One thread for torch in tests: they are small, and may share the machine with a training."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
