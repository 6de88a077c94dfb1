"""Checks a configuration before any data or device is touched, and says where each value came from.

Read in this order: ``sources`` (folders, Hydra's loader, the command line), ``overrides`` (the words typed),
``origins`` (who set a key), ``targets`` (the allow-list), ``annotations`` (values against types), ``nodes`` (the
composed whole), ``messages`` (how a problem is told). Nothing here imports torch or Lightning before a target is
resolved or an error is raised, so that ``--help`` answers at once.
"""

from cvexp.config.messages import Problem, report_errors, suggest
from cvexp.config.nodes import check_config, check_targets
from cvexp.config.origins import Origins, origin
from cvexp.config.overrides import check_overrides, parse_overrides
from cvexp.config.sources import Composer, conf_dir, register_resolvers
from cvexp.config.targets import allowed

__all__ = [
    "Composer",
    "Origins",
    "Problem",
    "allowed",
    "check_config",
    "check_overrides",
    "check_targets",
    "conf_dir",
    "origin",
    "parse_overrides",
    "register_resolvers",
    "report_errors",
    "suggest",
]
