"""Commands as people can paste them into the shell they started ours from."""

import shlex
import shutil
import sys
from pathlib import Path


def pasteable(program: str, *arguments: str) -> str:
    """A command line for one of the programs installed beside this interpreter: by its name where the shell finds that very
    program, else by its path, from here where it lies below the current folder."""
    installed = Path(sys.executable).with_name(program)
    found = shutil.which(program)
    if installed.exists() and not (found and Path(found).samefile(installed)):
        here = Path.cwd()
        program = str(installed.relative_to(here) if installed.is_relative_to(here) else installed)
    return shlex.join([program, *arguments])
