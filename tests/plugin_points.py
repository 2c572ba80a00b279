"""Plugins of scorers as they are installed."""

from types import ModuleType

import torch

import peft_surgical as ps


def fine(context):
    """Ones."""
    return {site: torch.ones(site.size) for site in context.sites}


class Installed:
    """An entry point; `brings` is its module, or what importing it raises."""

    def __init__(self, brings, name="a_plugin"):
        self.brings, self.name, self.value, self.dist = brings, name, name, None

    @property
    def module(self):
        return self.value

    def load(self):
        if isinstance(self.brings, BaseException):
            raise self.brings
        return self.brings


def module(name="a_plugin", **scorers):
    plugin = ModuleType(name)

    def register_scorers(register):
        for key, scorer in scorers.items():
            register(key, scorer)

    plugin.register_scorers = ps.hookimpl(register_scorers)
    return plugin
