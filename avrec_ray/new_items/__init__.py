"""Items that join a running service: submitted, decoded, embedded by the served towers, followed by every replica.

Reading order: submission -> store (queue, log of changes) -> ingest (decode, embed) -> follow -> overlay.
"""
