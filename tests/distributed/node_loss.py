"""What test_node_loss.py runs: the fork of a run on three nodes, one of which is removed while it works."""

import os
import sys
import threading

import ray
from ray.cluster_utils import Cluster

from suptickets_ray import load_config, train
from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.room import places_for_workers, worker_labels

# Seconds instead of half a minute; quicker, and a busy machine's living nodes are taken for dead.
FAST_DETECTION = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


@ray.remote(num_cpus=1)
class Probe:
    def node(self):
        return ray.get_runtime_context().get_node_id()


def check_the_head_is_kept_free():
    free = ClusterConfig(keep_head_free=True)
    assert places_for_workers(free, {"CPU": 1.0}) == 2
    probes = [Probe.options(label_selector=worker_labels(free)).remote() for _ in range(2)]
    head = ray.get_runtime_context().get_node_id()
    assert head not in ray.get([probe.node.remote() for probe in probes], timeout=60)
    for probe in probes:
        ray.kill(probe)


def main(run, temp_dir):
    head = {"num_cpus": 1, "_system_config": FAST_DETECTION, "include_dashboard": False, "temp_dir": temp_dir}
    head["object_store_memory"] = 100 * 2**20
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    check_the_head_is_kept_free()
    storage, name = os.path.split(run)
    config = load_config(f"{run}/config.yaml", [f"storage={storage}", f"name={name}", "cluster.num_explorers=3"])
    seen, removing = [], []

    def remove_a_node_once(event):
        seen.append((event["kind"], event.get("chain"), event.get("cycle")))
        if event["kind"] == "cycle_epoch" and sum(kind == "ticket" for kind, *_ in seen) >= 1 and not removing:
            removing.append(threading.Thread(target=cluster.remove_node, args=(nodes[-1], False)))
            removing[0].start()

    result = train(config, remove_a_node_once).result
    assert removing
    removing[0].join()
    assert not nodes[-1].any_processes_alive()
    sys.stdout.write(f"DIGEST {result['superposed']['digest']}\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
