"""Results as people read them: a view for each command, and what prints it."""

from greencc.render.devices import device_list
from greencc.render.reports import bench_report, compile_report, inspection, pack_report, verification
from greencc.render.session import tuning_plan, tuning_report
from greencc.render.tables import show

__all__ = [
    "bench_report",
    "compile_report",
    "device_list",
    "inspection",
    "pack_report",
    "show",
    "tuning_plan",
    "tuning_report",
    "verification",
]
