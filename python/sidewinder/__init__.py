"""The node in the interpreter that runs: `python -m sidewinder --name py@host`."""
