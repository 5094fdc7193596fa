"""The planner: finds the fastest way to cut and compute every layer, given measured costs."""

from cambrian.sharding.planner.allowed_partitions import PARTITIONS as PARTITIONS
from cambrian.sharding.planner.choose_plan import choose_plan as choose_plan
from cambrian.sharding.planner.costs import Costs as Costs, Option as Option
from cambrian.sharding.planner.plan_costs import plan_costs as plan_costs
