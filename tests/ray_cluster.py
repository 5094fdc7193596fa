"""A Ray cluster of several nodes on this machine, whose processes a test kills. Runs as a script of its own.

Prints the cluster's address, then does what each line on standard input says: `worker` kills the process of an actor of
the job, `node` kills a node with an actor, with all its processes, and adds another node.
"""

import signal
import sys

import psutil
import ray  # pyright: ignore[reportMissingImports]
from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

NUM_NODES = 2
_SMALL = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


def main() -> None:
    # The head, where the job runs, has no CPU: all actors are on other nodes.
    cluster = Cluster(initialize_head=True, head_node_args=_SMALL | {"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(**_SMALL) for _ in range(NUM_NODES)]
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        print(cluster.address, flush=True)
        for line in sys.stdin:
            raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes]
            actors = [(index, actor) for index, raylet in enumerate(raylets) for actor in _actors(raylet)]
            index, actor = actors[0]
            if line.strip() == "worker":
                actor.send_signal(signal.SIGKILL)
            else:
                for process in (raylets[index], *raylets[index].children(recursive=True)):
                    process.send_signal(signal.SIGKILL)
                cluster.remove_node(nodes[index], allow_graceful=False)
                nodes[index] = cluster.add_node(**_SMALL)
            print(f"killed {actor.pid}", flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _actors(raylet: psutil.Process) -> list[psutil.Process]:
    return [child for child in raylet.children() if "MapWorker" in " ".join(child.cmdline())]


if __name__ == "__main__":
    main()
