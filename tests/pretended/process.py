"""A process that has the pretended device, and runs scenarios and controls on it.

    python -c "from pretended.process import main; main()" FOLDER NAME...

The folder has models and data. What a scenario raises is written to FOLDER/results.json, by its name.
"""

import json
import sys
import traceback
from pathlib import Path

from pretended.backend import open_device


def main() -> None:
    open_device()  # before anything of Nestling asks for one
    from pretended import controls, scenarios, wrappers

    place, results = Path(sys.argv[1]), {}
    for name in sys.argv[2:]:
        module = next(each for each in (controls, scenarios, wrappers) if hasattr(each, name))
        try:
            getattr(module, name)(place)
            results[name] = ""
        except BaseException:  # SystemExit of a recipe among them
            results[name] = traceback.format_exc()
    (place / "results.json").write_text(json.dumps(results))
