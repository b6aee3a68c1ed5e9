"""Results as people read them: a view for each command, and what prints it."""

from greencc.render.database import database_list, export_report, merge_report, prune_report
from greencc.render.devices import device_list
from greencc.render.reports import bench_report, compile_report, inspection, pack_report, verification
from greencc.render.session import tuning_plan, tuning_report
from greencc.render.tables import show

__all__ = [
    "bench_report",
    "compile_report",
    "database_list",
    "device_list",
    "export_report",
    "inspection",
    "merge_report",
    "pack_report",
    "prune_report",
    "show",
    "tuning_plan",
    "tuning_report",
    "verification",
]
