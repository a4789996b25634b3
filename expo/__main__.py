import os
import sys

from expo.cli import main

if __name__ == "__main__":
    if not sys.flags.safe_path:  # `python -m` looks into the working folder first, and so do the processes it starts
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))
    main()
