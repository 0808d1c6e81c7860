"""Saved runs: safetensors and JSON, nothing pickled, so that reading one never runs code.

A run has a folder to itself:

- `run.json`: settings, methods, names of tensors, and how much of the journal counts; it ends with its own checksum;
- `journal-*.jsonl`: one line per record and per snapshot, with the snapshot's checksum; its checksum is in `run.json`;
- `round-*.safetensors`: the global model and the server's memory after a round;
- `clients-*.safetensors`: the memories of the clients that took part since the snapshot before.

A save writes what is new, and `run.json` last and in one step: a process killed at any moment leaves the last complete
run behind. A lock keeps two processes from writing at once. Files that are not the run's are never touched.
"""
