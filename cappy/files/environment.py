"""What a result was made with: versions, and the commit of the checkout."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ('cappy', 'jax', 'flax', 'optax', 'transformers', 'redco', 'numpy', 'rouge-score')


def environment() -> dict:
    """Versions of Python and of the packages that matter, None where not installed; and the checkout's commit, with
    '+changes' where its files differ from it, if Cappy runs from a checkout.
    """
    versions = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    commit = _commit()
    return versions | ({'commit': commit} if commit else {})


def _commit():
    def git(*arguments):
        process = subprocess.run(
            ['git', '-C', str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return process.stdout.strip()

    try:
        # Installed into an environment inside someone's checkout, this file is not tracked there.
        git('ls-files', '--error-unmatch', Path(__file__).name)
        changed = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', 'HEAD') + ('+changes' if changed else '')
    except (OSError, subprocess.SubprocessError):
        return None
