"""``threadpoolctl`` sees and limits qkvc's threads: ``threadpool_limits(1)``, or ``threadpool_limits(1, user_api="qkvc")``.

Importing qkvc registers the controller if threadpoolctl was imported before; otherwise import this module.
"""

from __future__ import annotations

from importlib.metadata import version

import threadpoolctl


class QkvcController(threadpoolctl.LibController):
    """Finds qkvc's extension among the loaded libraries and calls the two functions it exports."""

    user_api = "qkvc"
    internal_api = "qkvc"
    filename_prefixes = ("_kernels",)
    check_symbols = ("qkvc_get_num_threads", "qkvc_set_num_threads")

    def get_num_threads(self) -> int:
        """How many threads a call may use."""
        return int(self.dynlib.qkvc_get_num_threads())

    def set_num_threads(self, num_threads: int) -> None:
        """Set how many threads a call may use."""
        self.dynlib.qkvc_set_num_threads(num_threads)

    def get_version(self) -> str:
        """qkvc's version."""
        return version("qkvc")

    def set_additional_attributes(self) -> None:
        """Nothing to add."""


threadpoolctl.register(QkvcController)
