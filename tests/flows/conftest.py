"""Faults take minutes: `make test-services` asks for them by their marker."""

import pytest


def pytest_collection_modifyitems(config, items):
    if "faults" in (config.getoption("-m") or ""):
        return
    for item in items:
        if item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.skip(reason="kills and restarts services: `make test-services`"))
