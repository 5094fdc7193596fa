"""`--mode plan`: the plan of an executable, its predicted time beside the measured one."""
