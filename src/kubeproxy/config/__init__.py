"""The configuration: flags and the configuration file become one frozen value.

`types` has the fields (kubeproxy.config.k8s.io/v1alpha1), `flags` is the one table of flags, `load` joins the
two, `validate` checks the result and `write` prints it. Nothing here changes the node or knows the rest of
the program.
"""

from typing import Final

KUBERNETES: Final = "1.36"
"""The minor version of Kubernetes whose kube-proxy this program replaces."""

PREVIOUS: Final = "1.35"
"""The minor version before it: the only one --show-hidden-metrics-for-version may name."""


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        errors: one line for each thing that is wrong, naming the flag or field.
    """

    def __init__(self, *errors: str) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors
