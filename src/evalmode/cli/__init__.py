"""The command line: a file per command; `main` only dispatches. Nothing here loads torch until a command needs it."""
