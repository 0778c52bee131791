# SPDX-License-Identifier: Apache-2.0
"""The versions of verl that CW-GRPO was tested with."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

from packaging.version import InvalidVersion, Version

TESTED = {
    "0.7.1": "the estimator, in the V0 trainers",
    "0.8.0": "the estimator, in the V0 trainers",
    "0.9.0": "everything",
    "0.9.1": "everything",
    "0.10.0.dev0": "everything",
}
"""What is supported, by verl's version; `scripts/downstream.py` runs the tests with each release."""

LOSSES_SINCE = "0.9.0"
"""The first release with which the policy losses are supported."""
PLUGINS_SINCE = "0.9.0"
"""The first release that loads the entry points `verl.plugins`."""


def verl_version() -> str:
    """The version of the verl that this process imported; else of the installed one."""
    verl = sys.modules.get("verl")
    return getattr(verl, "__version__", None) or installed("verl")


def installed(distribution: str) -> str:
    """Its version, or that it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def is_since(release: str) -> bool:
    """Whether this verl is ``release`` or later, its development versions included; True if its version is not one."""
    try:
        return Version(Version(verl_version()).base_version) >= Version(release)
    except InvalidVersion:
        return True


def tested() -> str:
    """:data:`TESTED` as a text, for messages."""
    return "; ".join(f"{name}: {supported}" for name, supported in TESTED.items())


def untested() -> str | None:
    """That this verl is not one of :data:`TESTED`, with what those are; None if it is."""
    try:
        if str(Version(verl_version())) in TESTED:
            return None
    except InvalidVersion:
        pass
    return f"verl {verl_version()} is not a tested version. Tested are {tested()}"
