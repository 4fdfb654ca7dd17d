"""Chaos: real workers, producers and a real server under faults drawn from a seed, and a verifier that trusts none.

    plan       what is pushed: real speech, cut into chunks, with repeats; a folder of arrays
    schedule   which faults come when
    producer   a process that pushes its part of a plan, and may be killed
    servers    one server, or a primary and its replica
    stage      server, proxy, workers and producers; performs a schedule
    oracle     what a whole signal must yield: onnxruntime and numpy, nothing of the runtime
    listener   a consumer that reads along, and what it was handed
    verifier   reads the results logs with plain redis-py and counts what is wrong

`python -m tests.chaos` runs all of it (`make chaos`).
"""
